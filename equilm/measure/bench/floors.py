"""The least time a device allows: what must be computed, and what must be moved, at full rate.

A floor is the larger of two times: FLOPs by the rate of products, bytes by the rate of a copy. What
must move is what lies between products. Every output of a projection, and what the next one reads,
is written once and read once; so is the residual stream, at every norm; weights and injection are
read once an evaluation. A backward pass counts twice a forward one. Read `operation.py` next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from equilm.measure.bench.rows import Row
from equilm.nn.block import Stack
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import Linear
from equilm.nn.model import LanguageModel
from equilm.tree import Tree, leaves


class Ceiling(NamedTuple):
    """What a device was measured to do at most."""

    flops: float  # bf16 products, 1/s
    fp8_flops: float  # scaled fp8 products, 1/s
    bytes: float  # of a copy, read and written, 1/s


# A copy, products of 8,192 × 8,192, and scaled fp8 products; torch 2.11, CUDA 13.0.
CEILINGS = {"NVIDIA H200": Ceiling(flops=700e12, fp8_flops=1260e12, bytes=4.28e12)}


@dataclass(frozen=True)
class Work:
    """What has to be done: FLOPs, those beside them that fp8 does, and bytes to move."""

    flops: float
    bytes: float
    fp8_flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        """Both."""
        return Work(
            self.flops + other.flops, self.bytes + other.bytes, self.fp8_flops + other.fp8_flops
        )

    def __mul__(self, times: float) -> "Work":
        """The same several times."""
        return Work(self.flops * times, self.bytes * times, self.fp8_flops * times)

    @property
    def all_flops(self) -> float:
        """In whatever type."""
        return self.flops + self.fp8_flops


class Floor(NamedTuple):
    """The least time for products, and for moving, in ms; the larger one is the floor."""

    compute_ms: float
    memory_ms: float


def floor(work: Work, device_name: str) -> Floor | None:
    """Return the floor of some work on a device; `None` if its ceilings are not known."""
    ceiling = CEILINGS.get(device_name)
    if ceiling is None:
        return None
    compute = work.flops / ceiling.flops + work.fp8_flops / ceiling.fp8_flops
    return Floor(1e3 * compute, 1e3 * work.bytes / ceiling.bytes)


def step_work(model: LanguageModel, row: Row, itemsize: int) -> Work:
    """The work of a training step: all sweeps, the gradients, the injection, the head.

    Args:
        model: Of the row.
        row: Gives batch, length, depth and the type of the sweeps.
        itemsize: Bytes of a number in products: 2 for bf16.
    """
    tokens, core = row.batch * row.length, model.core
    body = core.body if isinstance(core, Equilibrium) else core
    assert isinstance(body, Stack)
    evaluation = stack_work(body, row.batch, row.length, itemsize)
    head = Work(2.0 * tokens * model.embedding.numel(), itemsize * model.embedding.numel())
    total = head * 3
    if not isinstance(core, Equilibrium):
        return total + evaluation * 3
    assert row.depth is not None
    sweeps, phantom = row.depth
    injection = linear_work(core.injection, tokens, itemsize)
    # The iterate is read and written, F of it written and read.
    evaluation += Work(0.0, 16.0 * tokens * core.width)
    sweep = _in_fp8(evaluation, body, tokens) if row.precision == "fp8" else evaluation
    return total + injection * 3 + sweep * sweeps + evaluation * (3 * phantom)


def stack_work(stack: Stack, batch: int, length: int, itemsize: int) -> Work:
    """The work of one evaluation of a stack, without the norm at its end."""
    tokens, width = batch * length, len(stack.norm_f.weight)
    stream = 2.0 * torch.float32.itemsize * width
    moved = 0.0
    for block in stack.blocks:
        moved += tokens * itemsize * block.mixer.inject_width
        for part in filter(None, (block.mixer, block.mlp)):
            moved += tokens * (part_bytes(part, width, itemsize) + stream)
    moved += itemsize * sum(m.inputs * m.outputs for m in _linears(stack))
    return Work(tokens * stack.flops_per_token(length), moved)


def linear_work(linear: Linear, tokens: int, itemsize: int) -> Work:
    """The work of one projection of so many tokens, alone."""
    numbers = tokens * (linear.inputs + linear.outputs) + linear.inputs * linear.outputs
    return Work(2.0 * tokens * linear.inputs * linear.outputs, float(itemsize * numbers))


def tensor_bytes(tree: Tree) -> float:
    """Bytes of the tensors of a tree."""
    return float(sum(part.numel() * part.itemsize for part in leaves(tree)))


def part_bytes(part: nn.Module, width: int, itemsize: int) -> float:
    """What lies between the projections of a mixer or an MLP, in bytes a token, moved twice.

    Args:
        part: Has projections of inputs of that width.
        width: D.
        itemsize: Bytes of a number.
    """
    linears = list(_linears(part))
    # What comes in, what projections write, and what the last of them reads.
    between = width + sum(m.outputs for m in linears) + max(m.inputs for m in linears)
    return 2.0 * itemsize * between


def _in_fp8(work: Work, stack: Stack, tokens: int) -> Work:
    products = 2.0 * tokens * sum(m.inputs * m.outputs for m in _linears(stack))
    return Work(work.flops - products, work.bytes, products)


def _linears(module: nn.Module) -> Iterable[Linear]:
    return (part for part in module.modules() if isinstance(part, Linear))
