"""What a layer of Mamba2 does, as operations to time: all of it, and its parts.

Slices of a projection's output keep their strides, and the injection is there, as in the model.
Read `attention_operations.py` next.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from equilm.measure.bench.floors import tensor_bytes
from equilm.measure.bench.inputs import Inputs
from equilm.measure.bench.operation import Operation, Outputs, product
from equilm.nn.mamba2 import Mamba2
from equilm.nn.norm import compute_dtype
from equilm.ops.conv import conv_silu
from equilm.ops.gated_scan import Weights
from equilm.ops.gated_scan import gated_scan as gated_scan_op
from equilm.ops.norm import gated_rms_norm
from equilm.ops.scan import ssd, ssd_chunked, ssd_sequential

SEQUENTIAL = 256  # tokens up to which the scan is held against its definition, token by token


def input_projection(inputs: Inputs) -> Operation:
    """The product before the mixer."""
    return product(*inputs.product(inputs.config.width, _mixer(inputs).inject_width))


def output_projection(inputs: Inputs) -> Operation:
    """The product behind the mixer."""
    return product(*inputs.product(_mixer(inputs).inner, inputs.config.width))


def gated_scan(inputs: Inputs) -> Operation:
    """Everything between the two projections."""
    mixer = _mixer(inputs)
    groups, width = mixer.config.groups, mixer.config.conv_width

    def run(proj_BTE: Tensor, inject_BTE: Tensor, *weights: Tensor) -> Outputs:
        dtype = compute_dtype(proj_BTE)
        return gated_scan_op(proj_BTE, inject_BTE, Weights(*weights), groups=groups, dtype=dtype)

    rows = (inputs.tokens(mixer.inject_width), inputs.tokens(mixer.inject_width))
    weights = Weights(
        taps_CW=inputs.half(mixer.channels, width) / 2,
        taps_bias_C=inputs.wide(mixer.channels),
        dt_bias_H=inputs.wide(mixer.heads) - 4,
        a_log_H=inputs.wide(mixer.heads).abs(),
        skip_H=inputs.wide(mixer.heads),
        norm_I=inputs.wide(mixer.inner),
    )
    tokens = inputs.batch * inputs.length
    read, written = tensor_bytes(rows), float(rows[0].itemsize * tokens * mixer.inner)
    return Operation(
        run=run,
        rows=rows,
        weights=weights,
        flops=_scan_flops(inputs) + _conv_flops(inputs),
        # One gradient serves the projection and the injection.
        bytes=(read + written, 1.5 * read + written),
    )


def convolution(inputs: Inputs) -> Operation:
    """The convolution on a slice of the projection's output, with the injection."""
    mixer, width = _mixer(inputs), _mixer(inputs).config.conv_width

    def run(x_BTC: Tensor, add_BTC: Tensor, taps_CW: Tensor, bias_C: Tensor) -> Outputs:
        return conv_silu(x_BTC, taps_CW, bias_C, add_BTC=add_BTC)

    here = slice(mixer.inner, mixer.inner + mixer.channels)
    return Operation(
        run=run,
        rows=(_slice(inputs, here), _slice(inputs, here)),
        weights=(inputs.half(mixer.channels, width) / 2, inputs.wide(mixer.channels)),
        flops=_conv_flops(inputs),
    )


def scan(inputs: Inputs) -> Operation:
    """The selective scan on slices of the convolution's output."""
    mixer, config = _mixer(inputs), _mixer(inputs).config
    directions = config.groups * config.state_size
    heads, state = (mixer.heads, config.head_width), (config.groups, config.state_size)

    def call(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Outputs]:
        def run(xbc_BTC: Tensor, dt_BTH: Tensor, a_H: Tensor, skip_H: Tensor) -> Outputs:
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
        flops=_scan_flops(inputs),
    )


def gated_norm(inputs: Inputs) -> Operation:
    """The norm behind the gate, which is a slice of the projection's output."""
    mixer, groups = _mixer(inputs), _mixer(inputs).config.groups

    def run(y_BTI: Tensor, gate_BTI: Tensor, add_BTI: Tensor, weight_I: Tensor) -> Outputs:
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


def _mixer(inputs: Inputs) -> Mamba2:
    assert isinstance(inputs.block.mixer, Mamba2)
    return inputs.block.mixer


def _scan_flops(inputs: Inputs) -> float:
    mixer = _mixer(inputs)
    return 6.0 * inputs.batch * inputs.length * mixer.inner * mixer.config.state_size


def _conv_flops(inputs: Inputs) -> float:
    mixer = _mixer(inputs)
    return 2.0 * inputs.batch * inputs.length * mixer.channels * mixer.config.conv_width


def _slice(inputs: Inputs, here: slice) -> Tensor:
    """Those channels of (B, T, E), as wide as the projection in memory."""
    return inputs.tokens(_mixer(inputs).inject_width)[..., here]
