"""Launches of the convolution's Triton kernels; `conv.py` is their meaning and their twin.

What is added to the input (an equilibrium's injection) is read here, not in a pass of its own.
`gated_scan_triton.py` launches the same kernels.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from equilm.ops import conv_backward_kernels, conv_kernels
from equilm.ops.launch import as_bytes, last_dense, token_strides

CHANNELS = 128  # of a program: one warp, four channels a thread


class Inputs(NamedTuple):
    """The arguments of `conv_silu`; the last dimension lies dense."""

    x: Tensor
    add: Tensor | None
    weight: Tensor
    bias: Tensor
    window: Tensor | None
    valid: Tensor | None
    starts: Tensor | None  # bytes


class ConvSilu(torch.autograd.Function):
    """`conv_silu` on a GPU, with its arguments in the order of `Inputs`; starts as truths."""

    @staticmethod
    def forward(ctx: Any, x, add, weight, bias, window, valid, starts):
        inputs = Inputs(
            last_dense(x),
            None if add is None else last_dense(add),
            weight.contiguous(),
            bias,
            None if window is None else window.contiguous(),
            valid,
            as_bytes(starts),
        )
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return convolve(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy, dnext):
        inputs = Inputs(*ctx.saved_tensors)
        x, add = inputs.x, inputs.add
        dy = torch.zeros_like(x) if dy is None else last_dense(dy)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight, dbias, dwindow = convolve_backward(inputs, dy, None, dnext, dx)
        dadd = None if add is None else dx.to(add.dtype)
        return dx, dadd, dweight, dbias, dwindow, None, None


def convolve(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return y_BTC in the type of x, and the next window in float32."""
    x, add, weight, bias, window, valid, starts = inputs
    rows, tokens, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    next_window = torch.empty(rows, weight.shape[1] - 1, channels, device=x.device)
    align, strides = token_strides(x, add)
    grid, per_program = _grid(rows, tokens, channels)
    conv_kernels.forward[grid](
        x,
        x if add is None else add,
        weight,
        bias,
        x if window is None else window,
        valid,
        starts,
        y,
        next_window,
        tokens,
        channels,
        *strides,
        **_shape(inputs, per_program, align),
    )
    return y, next_window


def convolve_backward(
    inputs: Inputs, dy: Tensor, dtail: Tensor | None, dnext: Tensor | None, dx: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Write dx, and return the gradients of the taps, the bias and the window.

    Args:
        inputs: As given to `convolve`.
        dy: (B, T, ≤ C) the cotangents of the first channels, or of all.
        dtail: (B, T, the rest) contiguous, those of the others.
        dnext: (B, W−1, C) the cotangent of the next window; `None` means zero.
        dx: (B, T, C) is overwritten.
    """
    x, add, weight, bias, window, valid, starts = inputs
    rows, tokens, channels = x.shape
    grid, per_program = _grid(rows, tokens, channels)
    align, strides = token_strides(x, add, dy, dx)
    sums = torch.empty(grid[0] * grid[1], channels * (weight.shape[1] + 1), device=x.device)
    dwindow = None if window is None else torch.empty(window.shape, device=x.device)
    conv_backward_kernels.backward[grid](
        x,
        x if add is None else add,
        weight,
        bias,
        x if window is None else window,
        valid,
        starts,
        dy,
        dy if dtail is None else dtail,
        x if dnext is None else dnext.contiguous(),
        dx,
        dx if dwindow is None else dwindow,
        sums,
        tokens,
        channels,
        dy.shape[2],
        *strides,
        HAS_NEXT=dnext is not None,
        **_shape(inputs, per_program, align),
    )
    dweight, dbias = sums.sum(0).split([weight.numel(), channels])
    return dweight.view_as(weight).to(weight.dtype), dbias.to(bias.dtype), dwindow


def _grid(rows: int, tokens: int, channels: int) -> tuple[tuple[int, int, int], int]:
    """The programs, and the tokens of each: fewer where the chip would not be full."""
    per_program, tiles = 64, triton.cdiv(channels, CHANNELS)
    while per_program > 8 and rows * triton.cdiv(tokens, per_program) * tiles < 4096:
        per_program //= 2
    return (rows, triton.cdiv(tokens, per_program), tiles), per_program


def _shape(inputs: Inputs, per_program: int, align: int) -> dict[str, Any]:
    return {
        "HAS_ADD": inputs.add is not None,
        "HAS_WINDOW": inputs.window is not None,
        "HAS_VALID": inputs.valid is not None,
        "HAS_STARTS": inputs.starts is not None,
        "W": inputs.weight.shape[1],
        "TOKENS": per_program,
        "C": CHANNELS,
        "ALIGN": align,
        "num_warps": 1,
    }
