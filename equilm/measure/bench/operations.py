"""The operations that are timed, at the shape of a model.

Each is called as the model calls it: slices of a projection's output keep their strides, weights
come in the type of products, and the injection is there. A new one is a function and a row in a
table at the end. Read `op_rows.py` next.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.measure.bench.build import build, stack_of
from equilm.measure.bench.floors import stack_work
from equilm.measure.bench.operation import Operation
from equilm.measure.bench.place import Place
from equilm.measure.bench.rows import Row, config_of
from equilm.nn.attention import AttentionConfig
from equilm.nn.block import Block, Stack
from equilm.nn.mamba2 import Mamba2
from equilm.nn.model import ModelConfig
from equilm.nn.norm import compute_dtype
from equilm.ops.attend import attend
from equilm.ops.conv import conv_silu
from equilm.ops.cross_entropy import linear_cross_entropy
from equilm.ops.norm import add_rms_norm, gated_rms_norm
from equilm.ops.scan import ssd, ssd_chunked, ssd_sequential
from equilm.tasks import IGNORE

SEQUENTIAL = 256  # tokens up to which the scan is held against its definition, token by token


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

    @property
    def mixer(self) -> Mamba2:
        """Of that block, where it is Mamba2."""
        assert isinstance(self.block.mixer, Mamba2)
        return self.block.mixer

    def wide(self, *shape: int) -> Tensor:
        """Normal numbers in float32."""
        return torch.randn(shape, generator=self.generator, device=self.place.device)

    def half(self, *shape: int) -> Tensor:
        """The same in the type of products."""
        return self.wide(*shape).to(self.place.dtype)

    def tokens(self, width: int) -> Tensor:
        """(B, T, width) in the type of products."""
        return self.half(self.batch, self.length, width)


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


def scan(inputs: Inputs) -> Operation:
    """The selective scan on slices of the convolution's output."""
    mixer, config = inputs.mixer, inputs.mixer.config
    directions = config.groups * config.state_size
    heads, state = (mixer.heads, config.head_width), (config.groups, config.state_size)

    def call(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        def run(xbc_BTC: Tensor, dt_BTH: Tensor, a_H: Tensor, skip_H: Tensor) -> tuple[Tensor, ...]:
            x_BTI, b_BTS, c_BTS = xbc_BTC.split([mixer.inner, directions, directions], dim=-1)
            x_BTHP, b_BTGN = x_BTI.unflatten(-1, heads), b_BTS.unflatten(-1, state)
            return function(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTS.unflatten(-1, state), skip_H)

        return run

    dt_BTH = F.softplus(inputs.wide(inputs.batch, inputs.length, mixer.heads) - 3)
    a_H = -1 - 15 * inputs.wide(mixer.heads).sigmoid()
    plain = ssd_sequential if inputs.length <= SEQUENTIAL else ssd_chunked
    return Operation(
        run=call(ssd),
        twin=call(plain),
        rows=(inputs.tokens(mixer.channels), dt_BTH),
        weights=(a_H, inputs.wide(mixer.heads)),
        flops=6.0 * inputs.batch * inputs.length * mixer.inner * config.state_size,
    )


def convolution(inputs: Inputs) -> Operation:
    """The convolution on a slice of the projection's output, with the injection."""
    mixer, width = inputs.mixer, inputs.mixer.config.conv_width

    def run(x_BTC: Tensor, add_BTC: Tensor, taps_CW: Tensor, bias_C: Tensor) -> tuple[Tensor, ...]:
        return conv_silu(x_BTC, taps_CW, bias_C, add_BTC=add_BTC)

    here = slice(mixer.inner, mixer.inner + mixer.channels)
    return Operation(
        run=run,
        rows=(_slice(inputs, here), _slice(inputs, here)),
        weights=(inputs.half(mixer.channels, width) / 2, inputs.wide(mixer.channels)),
        flops=2.0 * inputs.batch * inputs.length * mixer.channels * width,
    )


def gated_norm(inputs: Inputs) -> Operation:
    """The norm behind the gate, which is a slice of the projection's output."""
    mixer, groups = inputs.mixer, inputs.mixer.config.groups

    def run(y_BTI: Tensor, gate_BTI: Tensor, add_BTI: Tensor, weight_I: Tensor) -> tuple[Tensor]:
        dtype = compute_dtype(y_BTI)
        normed_BTI = gated_rms_norm(
            y_BTI, gate_BTI, weight_I, add_BTD=add_BTI, groups=groups, dtype=dtype
        )
        return (normed_BTI,)

    here = slice(0, mixer.inner)
    return Operation(
        run=run,
        rows=(inputs.tokens(mixer.inner), _slice(inputs, here), _slice(inputs, here)),
        weights=(inputs.wide(mixer.inner),),
    )


def add_norm(inputs: Inputs) -> Operation:
    """The addition to the residual stream, and the norm of the sum."""
    width = inputs.config.width

    def run(r_BTD: Tensor, y_BTD: Tensor, weight_D: Tensor) -> tuple[Tensor, ...]:
        return add_rms_norm(r_BTD, y_BTD, weight_D, dtype=compute_dtype(r_BTD))

    stream_BTD = inputs.wide(inputs.batch, inputs.length, width)
    rows = (stream_BTD, inputs.tokens(width))
    return Operation(run=run, rows=rows, weights=(inputs.wide(width),))


def input_projection(inputs: Inputs) -> Operation:
    """The product before the mixer."""
    return _product(inputs, inputs.config.width, inputs.mixer.inject_width)


def output_projection(inputs: Inputs) -> Operation:
    """The product behind the mixer."""
    return _product(inputs, inputs.mixer.inner, inputs.config.width)


def attention(inputs: Inputs) -> Operation:
    """Causal attention of all tokens to those before them."""
    assert isinstance(inputs.config.mixer, AttentionConfig)
    heads = inputs.config.mixer.heads
    kv_heads, width = inputs.config.mixer.kv_heads or heads, inputs.config.width // heads

    def run(*parts_BTHP: Tensor) -> tuple[Tensor, ...]:
        return (attend(*parts_BTHP),)

    shapes = [(inputs.batch, inputs.length, n, width) for n in (heads, kv_heads, kv_heads)]
    # A query meets half the keys on average, once for its scores and once for its values.
    flops = 2.0 * inputs.batch * inputs.length**2 * heads * width
    return Operation(run=run, rows=tuple(inputs.half(*shape) for shape in shapes), flops=flops)


def block(inputs: Inputs) -> Operation:
    """One sweep of a block: stream, branch and injection in, stream and branch out."""
    module = inputs.block
    names = [name for name, _ in module.named_parameters()]
    weights = tuple(p.to(inputs.place.dtype) if p.ndim > 1 else p for p in module.parameters())

    def run(r_BTD: Tensor, y_BTD: Tensor, u_BTE: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        arguments = (r_BTD, y_BTD, None, u_BTE, None)
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, parameters, arguments)[:2]

    width, itemsize = inputs.config.width, inputs.place.dtype.itemsize
    work = stack_work(inputs.stack, inputs.batch, inputs.length, itemsize)
    stream_BTD = inputs.wide(inputs.batch, inputs.length, width)
    return Operation(
        run=run,
        rows=(stream_BTD, inputs.tokens(width), inputs.tokens(module.mixer.inject_width)),
        weights=weights,
        flops=work.flops,
        bytes=work.bytes,
    )


def cross_entropy(inputs: Inputs) -> Operation:
    """The head and the loss, by the function that training uses."""
    config = inputs.config
    vocabulary, ignore = config.vocab_size, IGNORE
    assert vocabulary is not None

    def run(z_BTD: Tensor, targets_BT: Tensor, head_VD: Tensor) -> tuple[Tensor, ...]:
        found = linear_cross_entropy(
            z_BTD, head_VD, targets_BT, vocab_size=vocabulary, ignore=ignore
        )
        return (found.loss_sum,)

    def twin(z_BTD: Tensor, targets_BT: Tensor, head_VD: Tensor) -> tuple[Tensor, ...]:
        logits_BTV = F.linear(z_BTD, head_VD[:vocabulary])
        targets = targets_BT.flatten()
        return (F.cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="sum"),)

    shape = (inputs.batch, inputs.length)
    device = inputs.place.device
    targets_BT = torch.randint(vocabulary, shape, generator=inputs.generator, device=device)
    z_BTD = inputs.wide(*shape, config.width)
    head_VD = inputs.wide(config.padded_vocab_size, config.width) / config.width**0.5
    flops = 2.0 * targets_BT.numel() * head_VD.numel()
    return Operation(run=run, twin=twin, rows=(z_BTD, targets_BT), weights=(head_VD,), flops=flops)


Make = Callable[[Inputs], Operation]
MAMBA2: dict[str, Make] = {
    "input projection": input_projection,
    "convolution": convolution,
    "scan": scan,
    "gated norm": gated_norm,
    "output projection": output_projection,
}
ATTENTION: dict[str, Make] = {"attention": attention}
EVERYWHERE: dict[str, Make] = {
    "add norm": add_norm,
    "block": block,
    "cross entropy": cross_entropy,
}


def operations_of(config: ModelConfig) -> dict[str, Make]:
    """Return the operations of a model's blocks and of its head, by name."""
    own = {"mamba2": MAMBA2, "attention": ATTENTION}
    return own.get(config.mixer.kind, {}) | EVERYWHERE


def _product(inputs: Inputs, width: int, outputs: int) -> Operation:
    def run(x_BTD: Tensor, weight_ED: Tensor) -> tuple[Tensor, ...]:
        return (F.linear(x_BTD, weight_ED),)

    weight_ED = inputs.half(outputs, width) / width**0.5
    flops = 2.0 * inputs.batch * inputs.length * width * outputs
    return Operation(run=run, rows=(inputs.tokens(width),), weights=(weight_ED,), flops=flops)


def _slice(inputs: Inputs, here: slice) -> Tensor:
    """Those channels of (B, T, E), as wide as the projection in memory."""
    return inputs.tokens(inputs.mixer.inject_width)[..., here]
