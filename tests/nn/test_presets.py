"""Every preset has the published number of parameters and the published free phase."""

from dataclasses import replace

import pytest
import torch

from equilm.config import decode, encode
from equilm.nn.model import LanguageModel, ModelConfig, parameter_count
from equilm.nn.presets import PRESETS, preset
from equilm.solve.gradient import Phantom

# (explicit, implicit) in millions, and s of (s+4): SPEC section 4
PUBLISHED = {
    "mamba2-130m": (129.0, 131.7, 24),
    "mamba2-370m": (368.3, 373.2, 24),
    "mamba2-760m": (780.2, 790.6, 24),
    "mamba2-1.3b": (1343.8, 1361.9, 24),
    "llama-130m": (123.6, 125.4, 32),
    "llama-370m": (353.5, 356.9, 32),
    "llama-760m": (756.8, 764.2, 32),
    "llama-1.3b": (1311.0, 1324.1, 32),
}


def millions(config: ModelConfig) -> float:
    with torch.device("meta"):
        return parameter_count(LanguageModel(config)) / 1e6


def test_all_presets_are_listed() -> None:
    names = [*PUBLISHED, "state-tracking"]
    assert set(PRESETS) == {*names, *(f"explicit-{name}" for name in names)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    explicit, implicit, sweeps = PUBLISHED[name]
    assert round(millions(preset(f"explicit-{name}")), 1) == explicit
    assert round(millions(preset(name)), 1) == implicit
    equilibrium = preset(name).equilibrium
    assert equilibrium is not None
    assert equilibrium.solve.max_steps == sweeps
    assert equilibrium.solve.tolerance == 0.05
    assert equilibrium.gradient == Phantom(steps=4, damping=0.8)


def test_state_tracking_has_the_published_count_at_the_published_vocabulary() -> None:
    published = replace(preset("state-tracking"), vocab_size=240)
    assert round(millions(published), 2) == 1.53
    assert preset("state-tracking").vocab_size == 120


@pytest.mark.parametrize("name", PRESETS)
def test_weight_norm_and_equilibrium_come_together(name: str) -> None:
    config = preset(name)
    assert config.weight_norm == (config.equilibrium is not None)
    assert (config.equilibrium is None) == name.startswith("explicit-")
    assert decode(ModelConfig, encode(config)) == config


def test_vocabularies_are_padded_as_published() -> None:
    assert preset("mamba2-130m").padded_vocab_size == 50_288
    assert preset("llama-130m").padded_vocab_size == 50_277


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^preset: .*got 'mamba-130m'; did you mean 'mamba2-130m'"
    ):
        preset("mamba-130m")
