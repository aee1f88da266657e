"""The small language models differ in what they are to differ in, and in nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm import config
from equilm.nn.model import LanguageModel, ModelConfig, parameter_count
from equilm.reproduce.contexts import recipe
from equilm.train.cost import stretches
from equilm.train.recipe import Recipe
from equilm.train.schedule import at_phase

VOCABULARY = 8192  # as docs/language-models.md makes it
FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = ("mamba2", "implicit-mamba2", "llama", "implicit-llama")


def small(name: str) -> Recipe:
    path = FOLDER / f"lm-small-{name}.toml"
    return config.load(Recipe, path, [f"model.vocab_size={VOCABULARY}"])


def model(recipe: Recipe) -> ModelConfig:
    assert isinstance(recipe.model, ModelConfig)
    return recipe.model


def test_all_read_the_same_tokens_at_the_same_rate() -> None:
    first, *others = (small(name) for name in NAMES)
    for other in others:
        assert replace(other, model=first.model, phases=first.phases) == first
    assert first.steps * first.batch_size * 512 == 16_777_216


@pytest.mark.parametrize("kind", ["mamba2", "llama"])
def test_an_implicit_model_is_the_explicit_stack_iterated(kind: str) -> None:
    explicit, implicit = model(small(kind)), model(small(f"implicit-{kind}"))
    assert replace(implicit, equilibrium=None, weight_norm=False) == explicit
    assert implicit.equilibrium is not None and implicit.equilibrium.solve.tolerance == 0.05
    phases = small(f"implicit-{kind}").phases
    depths = [(phase.share, phase.max_steps, phase.phantom_steps) for phase in phases]
    assert depths == [(0.0, 4, 1), (0.8, 24 if kind == "mamba2" else 32, 4)]


@pytest.mark.parametrize("kind", ["mamba2", "llama"])
def test_whoever_loads_one_has_room_to_solve_more_than_was_trained_on(kind: str) -> None:
    made = small(f"implicit-{kind}")
    equilibrium = model(made).equilibrium
    assert equilibrium is not None
    used, trained = equilibrium.solve, at_phase(equilibrium, made.phases, share=0.9, length=512)
    assert used.max_steps >= 2 * trained.solve.max_steps
    assert used.window == 256 and trained.solve.window is None


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_trains_the_same_models(name: str) -> None:
    written = config.load(Recipe, FOLDER / f"lm-small-{name}.toml")
    sources = ("data/books", "data/textbooks")
    made = recipe(sources, llama=name.endswith("llama"), implicit=name.startswith("implicit"))
    assert made == written


def test_all_have_about_as_many_parameters() -> None:
    with torch.device("meta"):
        sizes = {name: parameter_count(LanguageModel(model(small(name)))) for name in NAMES}
    assert 29.0e6 < min(sizes.values()) < max(sizes.values()) < 31.4e6


def test_the_long_run_of_the_explicit_model_takes_the_flops_of_the_implicit_one() -> None:
    long, short = small("mamba2-flops"), small("mamba2")
    assert replace(long, steps=short.steps, checkpoint_every=short.checkpoint_every) == short
    taken = sum(part.flops for part in stretches(long))
    # In its second phase the implicit model made 14.5 sweeps a step in the mean, of at most 24.
    assert flops_of_sweeps(14) < taken < flops_of_sweeps(15)


def flops_of_sweeps(number: int) -> float:
    """All FLOPs of the implicit Mamba2 if so many sweeps are made in its second phase."""
    implicit = small("implicit-mamba2")
    bounded, free = implicit.phases
    made = replace(implicit, phases=(bounded, replace(free, max_steps=number)))
    return sum(part.flops for part in stretches(made))
