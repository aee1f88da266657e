"""The Triton kernel of one token of the selective scan; `selective_token.py` is its twin.

A program has some channels of one row, and reads and writes their states once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 512  # numbers of the states in a program, which is one warp


@triton.jit
def _token_kernel(
    x,
    step,
    a_log,
    b,
    c,
    skip,
    gate,
    state,
    y,
    after,
    stride_x,
    stride_step,
    stride_b,
    stride_c,
    stride_gate,
    num_channels: tl.constexpr,
    num_n: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """One row's next states and gated outputs of C channels."""
    row = tl.program_id(1).to(tl.int64)
    i_C, n_N = tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, N)
    mask_C, mask_N = i_C < num_channels, n_N < num_n
    at_CN, mask_CN = i_C[:, None] * num_n + n_N[None, :], mask_C[:, None] & mask_N[None, :]
    here_CN = row * num_channels * num_n + at_CN
    h_CN = tl.load(state + here_CN, mask=mask_CN, other=0.0)
    a_CN = tl.exp(tl.load(a_log + at_CN, mask=mask_CN, other=0.0).to(tl.float32))
    step_C = tl.load(step + row * stride_step + i_C, mask=mask_C, other=0.0).to(tl.float32)
    x_C = tl.load(x + row * stride_x + i_C, mask=mask_C, other=0.0).to(tl.float32)
    gate_C = tl.load(gate + row * stride_gate + i_C, mask=mask_C, other=0.0).to(tl.float32)
    skip_C = tl.load(skip + i_C, mask=mask_C, other=0.0).to(tl.float32)
    b_N = tl.load(b + row * stride_b + n_N, mask=mask_N, other=0.0).to(tl.float32)
    c_N = tl.load(c + row * stride_c + n_N, mask=mask_N, other=0.0).to(tl.float32)
    # log(1 + e^s) is s where e^s would be too much, and e^s where 1 + e^s would be 1.
    small_C = tl.exp(tl.minimum(step_C, 20.0))
    log_C = tl.where(small_C < 1e-4, small_C, tl.log(1.0 + small_C))
    dt_C = tl.where(step_C > 20.0, step_C, log_C)
    h_CN = h_CN * tl.exp(-dt_C[:, None] * a_CN) + (dt_C * x_C)[:, None] * b_N[None, :]
    tl.store(after + here_CN, h_CN, mask=mask_CN)
    y_C = tl.sum(h_CN * c_N[None, :], 1) + skip_C * x_C
    y_C *= gate_C / (1.0 + tl.exp(-gate_C))
    at_C = row * num_channels + i_C
    tl.store(y + at_C, y_C.to(y.dtype.element_ty), mask=mask_C)


def selective_token_kernel(
    x_BI: Tensor,
    step_BI: Tensor,
    a_log_IN: Tensor,
    b_BN: Tensor,
    c_BN: Tensor,
    skip_I: Tensor,
    gate_BI: Tensor,
    state_BIN: Tensor,
) -> tuple[Tensor, Tensor]:
    """`selective_token` on a GPU, without gradients."""
    rows = [
        tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (x_BI, step_BI, b_BN, c_BN, gate_BI)
    ]
    x_BI, step_BI, b_BN, c_BN, gate_BI = rows
    state_BIN = state_BIN.contiguous()
    batch, channels, size = state_BIN.shape
    y_BI = torch.empty(batch, channels, dtype=gate_BI.dtype, device=x_BI.device)
    after_BIN = torch.empty_like(state_BIN)
    numbers = triton.next_power_of_2(size)
    tile = max(1, TILE // numbers)
    _token_kernel[(triton.cdiv(channels, tile), batch)](
        x_BI,
        step_BI,
        a_log_IN.contiguous(),
        b_BN,
        c_BN,
        skip_I.contiguous(),
        gate_BI,
        state_BIN,
        y_BI,
        after_BIN,
        *(tensor.stride(0) for tensor in rows),
        num_channels=channels,
        num_n=size,
        N=numbers,
        C=tile,
        num_warps=1,
    )
    return y_BI, after_BIN
