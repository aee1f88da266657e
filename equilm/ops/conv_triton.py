"""Triton kernels of the causal convolution with SiLU; `conv.py` is their meaning and their twin.

What is added to the input (an equilibrium's injection) is read here, not in a pass of its own.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from equilm.ops import conv_kernels as kernels
from equilm.ops.launch import alignment

ROWS, CHANNELS = 32, 128  # tokens and channels of a tile


class ConvSilu(torch.autograd.Function):
    """The outputs of `conv_silu`, of x + add; the next window is left to the caller."""

    @staticmethod
    def forward(ctx: Any, x, add, weight, bias, window):
        x, add = _last_dense(x), _last_dense(add)
        weight, bias = weight.contiguous(), bias.contiguous()
        window = None if window is None else window.contiguous()
        ctx.save_for_backward(x, add, weight, bias, window)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, tokens, channels = x.shape
        align, strides = _strides(x, add)
        kernels.forward[_grid(rows, tokens, channels)](
            x,
            x if add is None else add,
            weight,
            bias,
            x if window is None else window,
            y,
            tokens,
            channels,
            *strides,
            **_shape(weight, add, window),
            ALIGN=align,
        )
        return y

    @staticmethod
    def backward(ctx: Any, dy):
        x, add, weight, bias, window = ctx.saved_tensors
        dy = _last_dense(dy)
        rows, tokens, channels = x.shape
        grid, shape = _grid(rows, tokens, channels), _shape(weight, add, window)
        align, strides = _strides(x, add, dy)
        dinner = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.empty(grid[0] * grid[1], *weight.shape, device=x.device)
        dbias = torch.empty(grid[0] * grid[1], channels, device=x.device)
        kernels.inner_backward[grid](
            x,
            x if add is None else add,
            weight,
            bias,
            x if window is None else window,
            dy,
            dinner,
            dweight,
            dbias,
            tokens,
            channels,
            *strides,
            **shape,
            ALIGN=align,
        )
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dwindow = None if window is None else torch.empty_like(window, dtype=torch.float32)
        shape.pop("HAS_ADD")
        kernels.outer_backward[_grid(rows, tokens + weight.shape[1] - 1, channels)](
            dinner, weight, dx, dwindow if window is not None else dx, tokens, channels, **shape
        )
        return (
            dx,
            None if add is None else dx.to(add.dtype),
            dweight.sum(0).to(weight.dtype),
            dbias.sum(0).to(bias.dtype),
            dwindow,
        )


def _last_dense(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor | None) -> tuple[int, list[int]]:
    """Their alignment, and the strides of rows and tokens in units of it."""
    strides = [s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2])]
    align = alignment(strides)
    return align, [stride // align for stride in strides]


def _grid(rows: int, tokens: int, channels: int) -> tuple[int, int, int]:
    return rows, triton.cdiv(tokens, ROWS), triton.cdiv(channels, CHANNELS)


def _shape(weight: Tensor, add: Tensor | None, window: Tensor | None) -> dict[str, Any]:
    return {
        "HAS_ADD": add is not None,
        "HAS_WINDOW": window is not None,
        "W": weight.shape[1],
        "T": ROWS,
        "C": CHANNELS,
    }
