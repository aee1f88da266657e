"""The gate of an MLP and the product behind it. Read `equilm/nn/mlp.py` next."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_linear(h_BTI: Tensor, weight_DI: Tensor) -> Tensor:
    """W (SiLU(first half of h) · second half of h), halves of the last dimension.

    On a GPU the gate's output is not kept for the backward pass but made again from h.

    Args:
        h_BTI: (..., 2 · hidden).
        weight_DI: (D, hidden), in the type of `h_BTI`.

    Returns:
        (..., D).

    Source: Shazeer 2020, arXiv 2002.05202. On a GPU: `swiglu_triton.py`.
    """
    if h_BTI.is_cuda and h_BTI.dtype != torch.float64:
        from equilm.ops.swiglu_triton import SwigluLinear

        return SwigluLinear.apply(h_BTI, weight_DI)
    gate_BTI, value_BTI = h_BTI.chunk(2, dim=-1)
    return F.linear(F.silu(gate_BTI) * value_BTI, weight_DI)
