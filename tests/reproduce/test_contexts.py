"""Figure 4, from a prepared folder to the drawing, with models that learn nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from equilm import record
from equilm.config import ConfigError
from equilm.data import PrepareConfig
from equilm.reproduce.contexts import Contexts, fig4
from equilm.reproduce.figures import Settings
from equilm.reproduce.plan import reproduce
from equilm.tasks import TextConfig
from equilm.train.schedule import FixedLengths
from tests.data.corpus import finish, prepared, texts, write


def test_it_needs_prepared_text() -> None:
    with pytest.raises(ConfigError, match="data: fig4 expected a folder"):
        fig4(Settings(quick=True))


def test_the_figure_is_drawn_from_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    document = write(tmp_path / "long.jsonl", ["".join(texts(400, seed=1))])
    finish(PrepareConfig(test=(document,), out=folder))
    train = prepared(tmp_path, texts(200), name="tokens")
    figure = fig4(Settings(quick=True, data=folder))
    runs = []
    for run in figure.runs[2:]:
        (measure,) = run.measures
        assert isinstance(measure, Contexts)
        short = replace(measure.settings, lengths=(16, 32, 64), windows=(16, 0), batch_size=2)
        task = TextConfig(sources=(str(train),), boundaries="carry")
        lengths = FixedLengths(lengths=(16,))
        made = replace(run.recipe, task=task, steps=2, batch_size=2, curriculum=lengths)
        runs.append(replace(run, recipe=made, measures=(replace(measure, settings=short),)))
    written = reproduce(
        replace(figure, runs=tuple(runs)),
        tmp_path / "out",
        watch=lambda trainer, _: list(trainer.run()),  # type: ignore[arg-type]
        say=lambda _: None,
    )
    names = {path.name for path in written}
    assert {"length-perplexity.png", "perplexity.svg", "tables.md"} <= names
    found = record.read(tmp_path / "out" / "fig4" / "records.jsonl")
    told = {(r.model, r.length) for r in found if r.name == "perplexity"}
    assert told == {(m, n) for m in ("llama", "implicit-llama") for n in (16, 32, 64)}
