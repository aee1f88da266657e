"""The published models by name; `explicit-` before a name drops the equilibrium and weight norm.

Read `folder.py` next.
"""

from dataclasses import replace

from equilm.config import nearest
from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import ModelConfig
from equilm.solve.gradient import Phantom
from equilm.solve.iterate import Solve

NEOX_VOCAB_SIZE = 50_277  # GPT-NeoX-20B's tokenizer


def preset(name: str) -> ModelConfig:
    """Look up a published model.

    Args:
        name: A key of `PRESETS`.

    Returns:
        Its configuration; `dataclasses.replace` it for another vocabulary.

    Raises:
        ValueError: For an unknown name; names the nearest.
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset: expected one of {', '.join(sorted(PRESETS))}, got {name!r}; "
            f"did you mean {nearest(name, PRESETS)!r}?"
        )
    return PRESETS[name]


def free_phase(sweeps: int) -> EquilibriumConfig:
    """(s+4): at most s sweeps to a relative residual of 0.05, then 4 phantom steps.

    Source: arXiv 2502.07827; s is 24 for Mamba2 on text, 32 elsewhere.
    """
    return EquilibriumConfig(
        solve=Solve(tolerance=0.05, max_steps=sweeps), gradient=Phantom(steps=4, damping=0.8)
    )


def explicit(config: ModelConfig) -> ModelConfig:
    """The same stack passed through once, with plain weights."""
    return replace(config, weight_norm=False, equilibrium=None)


def _mamba2(num_layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=NEOX_VOCAB_SIZE,
        vocab_multiple=16,
        width=width,
        num_layers=num_layers,
        mixer=Mamba2Config(),
        weight_norm=True,
        equilibrium=free_phase(24),
    )


def _llama(num_layers: int, width: int, heads: int, mlp_hidden: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=NEOX_VOCAB_SIZE,
        width=width,
        num_layers=num_layers,
        mixer=AttentionConfig(heads=heads),
        mlp_hidden=mlp_hidden,
        weight_norm=True,
        equilibrium=free_phase(32),
    )


_IMPLICIT = {
    "mamba2-130m": _mamba2(24, 768),
    "mamba2-370m": _mamba2(48, 1024),
    "mamba2-760m": _mamba2(48, 1536),
    "mamba2-1.3b": _mamba2(48, 2048),
    "llama-130m": _llama(12, 768, heads=12, mlp_hidden=2048),
    "llama-370m": _llama(24, 1024, heads=16, mlp_hidden=2730),
    "llama-760m": _llama(24, 1536, heads=16, mlp_hidden=4096),
    "llama-1.3b": _llama(24, 2048, heads=32, mlp_hidden=5461),
    # The vocabulary is the task's: 120 for S5, 240 for the published A5 × a monoid of 4.
    "state-tracking": ModelConfig(
        vocab_size=120,
        vocab_multiple=16,
        width=256,
        num_layers=1,
        mixer=Mamba2Config(expand=4),
        dropout=0.05,
        weight_norm=True,
        equilibrium=free_phase(32),
    ),
}

# Source: arXiv 2502.07827 and the model configurations that its authors ship.
PRESETS: dict[str, ModelConfig] = _IMPLICIT | {
    f"explicit-{name}": explicit(config) for name, config in _IMPLICIT.items()
}
