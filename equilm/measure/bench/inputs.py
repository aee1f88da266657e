"""What operations are timed on: a block of a model, and random tensors of its shapes.

Read `operation.py` next.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equilm.measure.bench.build import build, stack_of
from equilm.measure.bench.place import Place
from equilm.measure.bench.rows import Row, config_of
from equilm.nn.block import Block, Stack
from equilm.nn.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A block of a model, a shape, and random tensors for them."""

    config: ModelConfig
    stack: Stack
    batch: int
    length: int
    place: Place
    generator: torch.Generator

    @property
    def block(self) -> Block:
        """Its only block, explicit and without weight norm, which is folded once a step."""
        return self.stack.blocks[0]

    def wide(self, *shape: int) -> Tensor:
        """Normal numbers in float32."""
        return torch.randn(shape, generator=self.generator, device=self.place.device)

    def half(self, *shape: int) -> Tensor:
        """The same in the type of products."""
        return self.wide(*shape).to(self.place.dtype)

    def tokens(self, width: int) -> Tensor:
        """(B, T, width) in the type of products."""
        return self.half(self.batch, self.length, width)

    def product(self, width: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Tokens of that width, and a weight for them, as wide at the output as at the input."""
        return self.tokens(width), self.half(outputs, width) / width**0.5


def draw(row: Row, place: Place) -> Inputs:
    """The inputs of a row, the same each time."""
    config = config_of(row.model)
    single = replace(config, num_layers=1, vocab_size=8, weight_norm=False, equilibrium=None)
    return Inputs(
        config=config,
        stack=stack_of(build(single, place.device)),
        batch=row.batch,
        length=row.length,
        place=place,
        generator=torch.Generator(place.device).manual_seed(0),
    )
