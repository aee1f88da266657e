"""What a layer of Llama does, as operations to time. Read `operations.py` next."""

from collections.abc import Callable

from torch import Tensor

from equilm.measure.bench.floors import part_bytes
from equilm.measure.bench.inputs import Inputs
from equilm.measure.bench.operation import Operation, Outputs, of_module, product
from equilm.nn.attention import Attention
from equilm.ops.attend import attend
from equilm.ops.rotary import split_heads as split_heads_op


def input_projection(inputs: Inputs) -> Operation:
    """Queries, keys and values as one product."""
    return product(*inputs.product(inputs.config.width, inputs.block.mixer.inject_width))


def split_heads(inputs: Inputs) -> Operation:
    """The injection added, queries and keys rotated, and all laid out for attention."""
    mixer = _mixer(inputs)
    heads, kv_heads, theta = mixer.heads, mixer.kv_heads, mixer.config.theta

    def run(qkv_BTE: Tensor, inject_BTE: Tensor) -> Outputs:
        return split_heads_op(qkv_BTE, inject_BTE, heads=heads, kv_heads=kv_heads, theta=theta)

    width = mixer.inject_width
    return Operation(run=run, rows=(inputs.tokens(width), inputs.tokens(width)))


def attention(inputs: Inputs) -> Operation:
    """Causal attention of all tokens to those before them."""
    mixer = _mixer(inputs)

    def run(*parts_BTHP: Tensor) -> Outputs:
        return (attend(*parts_BTHP),)

    counts = (mixer.heads, mixer.kv_heads, mixer.kv_heads)
    rows = [inputs.half(inputs.batch, inputs.length, n, mixer.head_width) for n in counts]
    # A query meets half the keys on average, once for its scores and once for its values.
    flops = 2.0 * inputs.batch * inputs.length**2 * mixer.width
    return Operation(run=run, rows=tuple(rows), flops=flops)


def output_projection(inputs: Inputs) -> Operation:
    """The product behind attention."""
    return product(*inputs.product(inputs.config.width, inputs.config.width))


def gated_mlp(inputs: Inputs) -> Operation:
    """The MLP behind a mixer: its products and the gate between them."""
    module, rows = inputs.block.mlp, (inputs.tokens(inputs.config.width),)
    assert module is not None

    def call(mlp: Callable[[Tensor], Tensor], a_BTD: Tensor) -> Outputs:
        return (mlp(a_BTD),)

    tokens, itemsize = inputs.batch * inputs.length, inputs.place.dtype.itemsize
    flops = tokens * module.flops_per_token()
    moved = tokens * part_bytes(module, inputs.config.width, itemsize)
    return of_module(module, call, rows, inputs.place, flops=flops, bytes=moved)


def _mixer(inputs: Inputs) -> Attention:
    assert isinstance(inputs.block.mixer, Attention)
    return inputs.block.mixer
