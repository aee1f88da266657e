"""The table of mixers: every row of MIXERS is in it, and one that fails spoils no other."""

from dataclasses import replace
from pathlib import Path

import pytest

from equilm import record
from equilm.config import ConfigError
from equilm.measure.at_lengths import AtLengths
from equilm.measure.throughput import Throughput
from equilm.nn.mixers import MIXERS
from equilm.nn.model import LanguageModel
from equilm.reproduce import ablations
from equilm.reproduce.figures import Part, Settings
from equilm.reproduce.mixers import mixers
from equilm.reproduce.plan import Figure, Measurement, reproduce
from equilm.reproduce.rows import HYBRIDS, VARIANTS
from equilm.tasks import TextConfig, build_task
from equilm.train.schedule import FixedLengths
from equilm.train.trainer import Diverged, Trainer


def train(trainer: Trainer, name: str) -> None:
    for _ in trainer.run():
        pass


def silent(line: str) -> None:
    pass


def short(figure: Figure, *parts: str) -> Figure:
    """The columns of these parts, trained for two steps and measured in a moment."""
    runs = []
    for run in figure.runs:
        if run.group.removeprefix("mixers-") in parts:
            curriculum = FixedLengths(lengths=(16,))
            brief = replace(run.recipe, steps=2, batch_size=2, curriculum=curriculum)
            measures = tuple(map(cheap, run.measures))
            runs.append(replace(run, recipe=brief, measures=measures))
    return replace(figure, runs=tuple(runs))


def cheap(part: Measurement) -> Part:
    assert isinstance(part, Part)
    if isinstance(part.measure, Throughput):
        speed = Throughput(batch_size=1, length=4, slots=1, sweeps=(1, 1), max_steps=2, repeats=1)
        return replace(part, measure=speed)
    assert isinstance(part.measure, AtLengths)
    return replace(part, measure=replace(part.measure, batch_size=2, max_steps=2))


@pytest.mark.parametrize("quick", [True, False])
def test_every_mixer_has_a_row_with_both_kinds(quick: bool) -> None:
    figure = mixers(Settings(quick=quick))
    names = {run.name for run in figure.runs}
    rows = {*MIXERS, *VARIANTS, *HYBRIDS}
    assert names == rows | {f"{name}-implicit" for name in rows}
    assert len(figure.runs) == 12 * len(rows)
    kinds = {run.recipe.model.mixer.kind for run in figure.runs}  # type: ignore[union-attr]
    assert kinds == {*MIXERS, "hybrid"}


@pytest.mark.parametrize("name", [*MIXERS, *VARIANTS, *HYBRIDS])
def test_quick_models_fit(name: str) -> None:
    for run in mixers(Settings(quick=True, only=(name,))).runs[:4]:
        task = build_task(run.recipe.task)
        LanguageModel(run.recipe.model_for(task))


def test_a_row_from_training_to_table(tmp_path: Path) -> None:
    figure = short(mixers(Settings(quick=True, only=("gru",))), "recall")
    (_, tables) = reproduce(figure, tmp_path, watch=train, say=silent)
    header, _, row = tables.read_text(encoding="utf-8").splitlines()[2:]
    titles = ["mixer", "MQAR 8", "training, tokens/s", "decoding, tokens/s"]
    titles += ["state after 4 tokens, bytes"]
    assert [cell.strip() for cell in header.strip("|").split("|")] == titles
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "gru"
    assert all("—" not in cell and " / " in cell for cell in cells[1:])
    # A second call trains nothing, and one that may not train either finds the same.
    before = tables.read_bytes()
    reproduce(figure, tmp_path, watch=None, say=silent)
    assert tables.read_bytes() == before


def test_a_run_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    figure = short(mixers(Settings(quick=True, only=("gru", "mingru"))), "recall")

    def fail(trainer: Trainer, name: str) -> None:
        if name.startswith("gru"):
            raise Diverged("step 3: too far\nby much")
        train(trainer, name)

    for watch in (fail, None):
        (_, tables) = reproduce(figure, tmp_path, watch=watch, say=silent)
        rows = tables.read_text(encoding="utf-8").splitlines()[-2:]
        assert "Diverged / Diverged" in rows[0]
        assert "Diverged" not in rows[1]
    failed = [r for r in record.read(tmp_path / "mixers" / "records.jsonl") if r.name == "failed"]
    assert [r.task for r in failed] == ["Diverged: step 3: too far"] * 2
    (_, tables) = reproduce(figure, tmp_path, watch=train, say=silent)
    assert "Diverged" not in tables.read_text(encoding="utf-8")


def test_what_was_done_is_drawn_when_interrupted(tmp_path: Path) -> None:
    figure = short(mixers(Settings(quick=True, only=("gru", "mingru"))), "recall")

    def stop(trainer: Trainer, name: str) -> None:
        if name.startswith("mingru"):
            raise KeyboardInterrupt
        train(trainer, name)

    with pytest.raises(KeyboardInterrupt):
        reproduce(figure, tmp_path, watch=stop, say=silent)
    rows = (tmp_path / "mixers" / "tables.md").read_text(encoding="utf-8").splitlines()[4:]
    assert len(rows) == 1 and rows[0].startswith("| gru |")


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"only: expected some of .* got 's66', nearest is 's6'"):
        mixers(Settings(only=("s66",)))


@pytest.mark.parametrize("quick", [True, False])
def test_ablations_differ_from_the_published_mixer_in_one_thing(quick: bool) -> None:
    rows = ablations.configurations(quick=quick)
    published = vars(rows.pop("published"))
    assert len(set(rows.values())) == len(rows) == (15 if quick else 22)
    for name, config in rows.items():
        changed = [key for key, value in vars(config).items() if value != published[key]]
        assert len(changed) == 1, name
    combinations = {config.selective for config in rows.values()}
    assert len(combinations) == 8


def test_ablations_from_training_to_table(tmp_path: Path) -> None:
    figure = ablations.mamba_ablations(Settings(quick=True))
    runs = [run for run in figure.runs if run.name in ("published", "selective-nothing")]
    runs = [run for run in runs if run.group == "mamba-copying"]
    brief = short(replace(figure, runs=tuple(runs)), "mamba-copying")
    (_, tables) = reproduce(brief, tmp_path, watch=train, say=silent)
    lines = tables.read_text(encoding="utf-8").splitlines()
    assert lines[2] == "| setting | selective copying 24 |"
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["published", "selective-nothing"]


def test_ablations_read_text_where_a_folder_is_given(tmp_path: Path) -> None:
    figure = ablations.mamba_ablations(Settings(quick=True, data=tmp_path))
    texts = [run for run in figure.runs if run.group == "mamba-text"]
    assert len(texts) == 16
    task = texts[0].recipe.task
    assert isinstance(task, TextConfig) and task.sources == (str(tmp_path),)
