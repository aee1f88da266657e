"""The rows of the table of mixers: every one of MIXERS, some settings of them, and hybrids.

Read `mixers.py` first.
"""

from dataclasses import fields

from equilm.nn.experts import ExpertsConfig
from equilm.nn.hybrid import HybridConfig, Layer
from equilm.nn.mixers import MIXERS, MixerConfig
from equilm.nn.mlp import GatedMLPConfig

# Sizes of whatever a mixer's configuration has of these; the others stay as published.
QUICK_SIZES = {"state_size": 16, "head_width": 16, "heads": 2, "window": 8}
FULL_SIZES = {"state_size": 64, "head_width": 32, "heads": 4}
# Settings of a mixer by which it learns something else.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "mamba2-signed": ("mamba2", {"eigenvalues": "signed"}),
    "s6-complex": ("s6", {"init": "lin"}),
    "s4-gated": ("s4", {"gated": True}),
}
HYBRIDS = ("griffin", "jamba", "zamba")
Row = MixerConfig | HybridConfig


def table_rows(*, quick: bool) -> dict[str, Row]:
    """Return the mixers of the rows by name."""
    plain: dict[str, tuple[str, dict[str, object]]] = {kind: (kind, {}) for kind in MIXERS}
    rows: dict[str, Row] = {
        name: _sized(*row, quick=quick) for name, row in (plain | VARIANTS).items()
    }
    return rows | {name: _hybrid(name, quick=quick) for name in HYBRIDS}


def width(*, quick: bool) -> int:
    """Return D."""
    return 32 if quick else 128


def _sized(kind: str, settings: dict[str, object], *, quick: bool) -> MixerConfig:
    """Return the configuration of a kind with those of the sizes that it has."""
    config_class, _ = MIXERS[kind]
    known = {field.name for field in fields(config_class)}
    sizes = QUICK_SIZES if quick else FULL_SIZES
    chosen = {name: size for name, size in sizes.items() if name in known}
    config: MixerConfig = config_class(**{**chosen, **settings})
    return config


def _hybrid(name: str, *, quick: bool) -> HybridConfig:
    """Return a published pattern, as few layers as show what it is."""
    mlp = GatedMLPConfig(hidden=2 * width(quick=quick))
    few = ExpertsConfig(hidden=width(quick=quick), experts=4, chosen=2)
    kinds = ("rglru", "local", "s6", "mamba2", "attention")
    part = {kind: _sized(kind, {}, quick=quick) for kind in kinds}
    recurrent, local = Layer(mixer=part["rglru"], mlp=mlp), Layer(mixer=part["local"], mlp=mlp)
    shared = Layer(mixer=part["attention"], mlp=mlp, share="attention")
    layers = {
        "griffin": (recurrent, recurrent, local),
        "jamba": (Layer(mixer=part["s6"], mlp=mlp), Layer(mixer=part["attention"], mlp=few)),
        "zamba": (Layer(mixer=part["mamba2"]), shared, Layer(mixer=part["mamba2"]), shared),
    }
    return HybridConfig(layers=layers[name])
