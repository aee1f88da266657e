"""A stack of different layers by a pattern, some of which may share their parameters.

    mixer = { kind = "hybrid", layers = [{ mixer = {…}, mlp = {…} }, …] }

The pattern is repeated until there are `num_layers`. A plain model is the pattern of one layer, so
that every stack is built here. Read `model.py` next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from equilm.nn.block import Block, Stack
from equilm.nn.experts import Experts, ExpertsConfig
from equilm.nn.mixers import MIXERS, MixerConfig
from equilm.nn.mlp import GatedMLP, GatedMLPConfig

MLPConfig = GatedMLPConfig | ExpertsConfig


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a pattern.

    Args:
        mixer: What mixes tokens.
        mlp: What stands behind it; `None` for nothing.
        share: Layers of one name have one set of parameters, and states of their own; `None` for
            parameters of its own.
    """

    mixer: MixerConfig
    mlp: MLPConfig | None = None
    share: str | None = None


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """A pattern of layers.

    Args:
        layers: At least one; begun again at the end.
    """

    kind: Literal["hybrid"] = "hybrid"
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers: expected at least one, got none")
        named: dict[str, Layer] = {}
        for layer in self.layers:
            if layer.share is not None and named.setdefault(layer.share, layer) != layer:
                raise ValueError(
                    f"layers: expected all that share {layer.share!r} to be alike, got two kinds"
                )


def build_stack(
    pattern: Sequence[Layer],
    num_layers: int,
    width: int,
    *,
    weight_norm: bool,
    dropout: float,
    norm_eps: float,
) -> Stack:
    """Return the stack of a pattern.

    Args:
        pattern: At least one layer.
        num_layers: Layers of the stack, shared ones counted each time.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout behind each mixer.
        norm_eps: Added to the mean square in every norm but the mixer's own.

    Raises:
        ValueError: If sizes do not fit together.
    """
    blocks: list[Block] = []
    order: list[int] = []
    mixers: list[MixerConfig] = []
    named: dict[str, int] = {}
    for place in range(num_layers):
        layer = pattern[place % len(pattern)]
        number = named.get(layer.share, len(blocks)) if layer.share else len(blocks)
        if layer.share:
            named[layer.share] = number
        order.append(number)
        if number == len(blocks):
            mixers.append(layer.mixer)
            blocks.append(
                _block(layer, width, weight_norm=weight_norm, dropout=dropout, norm_eps=norm_eps)
            )
    # Mixers that are alike take the same injection.
    kinds = list(dict.fromkeys(mixers))
    parts = [kinds.index(mixer) for mixer in mixers]
    return Stack(blocks, width, order=order, parts=parts, norm_eps=norm_eps)


def _block(
    layer: Layer, width: int, *, weight_norm: bool, dropout: float, norm_eps: float
) -> Block:
    _, mixer_class = MIXERS[layer.mixer.kind]
    mixer = mixer_class(layer.mixer, width, weight_norm=weight_norm, dropout=dropout)
    mlp: GatedMLP | Experts | None = None
    if isinstance(layer.mlp, ExpertsConfig):
        mlp = Experts(layer.mlp, width, weight_norm=weight_norm)
    elif layer.mlp is not None:
        mlp = GatedMLP(width, layer.mlp.hidden, weight_norm=weight_norm)
    return Block(mixer, mlp, width, norm_eps=norm_eps)
