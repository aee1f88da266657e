"""What is counted is what is computed, and the recipes of the published run are that run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from equilm import config
from equilm.cli import main
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve.gradient import Implicit
from equilm.train.cost import cost_table, stretches
from equilm.train.recipe import Recipe
from equilm.train.schedule import AdaptiveLengths, FixedLengths, Phase
from tests.train.tiny import EXPLICIT, MODEL, TINY

PILE = sorted((Path(__file__).parents[2] / "recipes/pile").glob("*.toml"))
PLANNED = replace(
    TINY,
    model=replace(MODEL, vocab_size=6),
    steps=10,
    batch_size=3,
    curriculum=FixedLengths(lengths=(4, 8), shares=(0.0, 0.5)),
    phases=(Phase(max_steps=4, phantom_steps=1), Phase(share=0.8, max_steps=24, phantom_steps=4)),
)


def per_token(model: ModelConfig, sweeps: int, steps: int, length: int) -> float:
    """Count again: (s + 3k) evaluations of F, three times the head and the injection."""
    built = LanguageModel(model)
    outer = 2.0 * model.padded_vocab_size * model.width
    if model.equilibrium is not None:
        outer += 2.0 * model.width * built.core.inject_width
    return (sweeps + 3 * steps) * built.core.flops_per_token(length) + 3 * outer


def test_every_stretch_counts_its_sweeps_and_its_gradients() -> None:
    parts = list(stretches(PLANNED))
    assert [(part.name, part.length) for part in parts] == [("4+1", 4), ("4+1", 8), ("24+4", 8)]
    assert [part.tokens for part in parts] == pytest.approx([5 * 3 * 4, 3 * 3 * 8, 2 * 3 * 8])
    depths = [(4, 1), (4, 1), (24, 4)]
    for part, (sweeps, steps) in zip(parts, depths, strict=True):
        expected = part.tokens * per_token(replace(MODEL, vocab_size=6), sweeps, steps, part.length)
        assert part.flops == pytest.approx(expected)


def test_an_explicit_model_costs_three_passes() -> None:
    explicit = replace(EXPLICIT, vocab_size=6)
    parts = list(stretches(replace(PLANNED, model=explicit)))
    assert {part.name for part in parts} == {"explicit"}
    assert parts[0].flops == pytest.approx(parts[0].tokens * per_token(explicit, 0, 1, 4))


def test_hours_are_flops_by_rate_and_gpus() -> None:
    table = cost_table(PLANNED, gpus=(1, 10), rate=1e-6)
    total = sum(part.flops for part in stretches(PLANNED))
    assert table.rows[-1][0] == "all"
    hours = [float(cell.replace(",", "")) for cell in table.rows[-1][-2:]]
    assert hours == pytest.approx([total / 1e6 / 3600, total / 1e6 / 36000], abs=0.06)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (replace(PLANNED, curriculum=AdaptiveLengths()), "curriculum: expected fixed lengths"),
        (replace(PLANNED, model=MODEL), "vocab_size: expected the number of tokens"),
        (
            replace(
                PLANNED,
                model=replace(
                    MODEL, vocab_size=6, equilibrium=EquilibriumConfig(gradient=Implicit())
                ),
            ),
            "gradient: expected phantom steps",
        ),
    ],
)
def test_what_cannot_be_counted_is_told(recipe: Recipe, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        cost_table(recipe, gpus=(8,), rate=300.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gpus": (8,), "rate": 0.0}, "rate: expected a number > 0, got 0.0"),
        ({"gpus": (8, 0), "rate": 1.0}, r"gpus: expected one or more integers >= 1, got \(8, 0\)"),
        ({"gpus": (), "rate": 1.0}, "gpus: expected one or more"),
    ],
)
def test_a_rate_and_numbers_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        cost_table(PLANNED, **settings)


def test_the_advice_for_a_curriculum_that_waits_can_be_followed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curriculum: expected fixed lengths") as refused:
        list(stretches(TINY))
    (override,) = re.findall("--set '(.*)'", str(refused.value))
    config.save(TINY, tmp_path / "tiny.json")
    followed = config.load(Recipe, tmp_path / "tiny.json", [override, "model.vocab_size=6"])
    assert {part.length for part in stretches(followed)} == {6}


@pytest.mark.parametrize("path", PILE, ids=lambda path: path.stem)
def test_the_published_run_has_its_tokens_context_and_depth(path: Path) -> None:
    parts = list(stretches(config.load(Recipe, path)))
    sweeps = {"mamba2": 24, "llama": 32}[path.stem.split("-")[0]]
    assert [part.depth for part in parts] == [(4, 1), (sweeps, 4)]
    assert {part.length for part in parts} == {2048}
    assert sum(part.tokens for part in parts) == pytest.approx(207e9, rel=1e-4)
    assert parts[0].tokens / 207e9 == pytest.approx(0.8, rel=1e-4)


def test_there_is_a_recipe_for_every_size_of_both_families() -> None:
    sizes = ("130m", "370m", "760m", "1.3b")
    expected = {f"{family}-{size}" for family in ("mamba2", "llama") for size in sizes}
    assert {path.stem for path in PILE} == expected


def test_the_command_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["equilm", "plan", str(PILE[0]), "--gpus", "8", "32"])
    main()
    shown = capsys.readouterr().out
    assert "hours" in shown and "4+1" in shown and "32+4" in shown
