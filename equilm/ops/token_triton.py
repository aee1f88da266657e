"""One Mamba2 layer for one token a row, in three launches for one row and five for more.

The weights are read once, the state once, and nothing is written back unless asked for. Of one row
each kernel begins while the one before it still runs, so that its weights are there when their
input is. The twin is the layer itself: `nn/block.py` over `ops/{norm,gated_scan}.py`. Read
`token_kernels.py` next, then `token_rows_kernels.py`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from equilm.ops import token_kernels as kernels
from equilm.ops import token_rows_kernels as rows_kernels
from equilm.ops.fp8 import Scaled
from equilm.ops.gated_scan import Weights
from equilm.ops.norm_triton import AddNorm, group_norm


class Layer(NamedTuple):
    """What a layer has learned; the two projections come in the compute type."""

    norm_D: Tensor
    in_ED: Tensor
    out_DI: Tensor
    inner: Weights
    groups: int
    eps: float  # of the norm before the layer
    inner_eps: float
    narrow_in: Scaled | None = None  # the projections in 8 bits by rows, read where one row is
    narrow_out: Scaled | None = None


class Answer(NamedTuple):
    """The stream, the branch still to be added to it, and the state after the token."""

    r_RD: Tensor  # float32
    y_RD: Tensor
    window_RWC: Tensor | None  # float32; of rows not wanted anything
    scan_RHPN: Tensor | None  # likewise


def layer_token(
    r_RD: Tensor,
    y_RD: Tensor | None,
    layer: Layer,
    window_RWC: Tensor,
    scan_RHPN: Tensor,
    inject_RE: Tensor | None,
    *,
    advance: bool | Tensor,
    follows: bool = False,
) -> Answer:
    """r ← r + y; y ← W_out RMSNorm(S c · SiLU(gate)) of W_in RMSNorm(r) + inject.

    Args:
        r_RD: (R, D) float32, the stream.
        y_RD: (R, D) the branch still to be added; `None` adds nothing.
        layer: What was learned.
        window_RWC: (R, W − 1, C) the convolution's inputs before.
        scan_RHPN: (R, H, P, N) the state before, float32 or bf16.
        inject_RE: (R, E) added behind the first projection, dense in E.
        advance: Whether to return the state after the token, or (R,) bool: of which rows; the one
            given is never changed.
        follows: Whether weights and states stood before the kernel launched last, which may then
            still run: true behind another layer.
    """
    dtype = layer.in_ED.dtype
    if len(r_RD) == 1 and layer.groups == 1:
        r_RD, proj_RE = _project(
            r_RD, y_RD, layer.norm_D, layer.in_ED, layer.narrow_in, layer.eps, follows=follows
        )
        gated_RI, window, state = _read(
            proj_RE, layer, window_RWC, scan_RHPN, inject_RE, advance, torch.float32
        )
        _, y_RD = _project(
            gated_RI, None, layer.inner.norm_I, layer.out_DI, layer.narrow_out, layer.inner_eps
        )
        return Answer(r_RD, y_RD, window, state)
    r_RD, a_RD = AddNorm.apply(r_RD, y_RD, layer.norm_D, layer.eps, dtype, None)
    proj_RE = F.linear(a_RD, layer.in_ED)
    gated_RI, window, state = _read(
        proj_RE, layer, window_RWC, scan_RHPN, inject_RE, advance, dtype
    )
    normed_1RI = group_norm(
        gated_RI[None],
        layer.inner.norm_I,
        groups=layer.groups,
        eps=layer.inner_eps,
        dtype=dtype,
        scale=None,
    )
    return Answer(r_RD, F.linear(normed_1RI[0], layer.out_DI), window, state)


def _project(
    x_1K: Tensor,
    y_1K: Tensor | None,
    norm_K: Tensor,
    weight_OK: Tensor,
    narrow: Scaled | None,
    eps: float,
    *,
    follows: bool = True,
) -> tuple[Tensor, Tensor]:
    """x + y, and W RMSNorm(x + y) in float32."""
    outputs, inputs = weight_OK.shape
    total = x_1K if y_1K is None else torch.empty(x_1K.shape, device=x_1K.device)
    out = torch.empty(1, outputs, device=x_1K.device)
    whole, ahead = triton.next_power_of_2(inputs), _can_begin_early(x_1K.device)
    owned, warps = _tile(outputs, whole)
    kernels.project[(triton.cdiv(outputs, owned),)](
        x_1K,
        y_1K,
        norm_K,
        weight_OK if narrow is None else narrow.data,
        None if narrow is None else narrow.scale,
        total,
        out,
        inputs,
        outputs,
        eps,
        HAS_Y=y_1K is not None,
        HAS_SCALE=narrow is not None,
        O=owned,
        K=whole,
        AHEAD=ahead,
        num_warps=warps,
        **_launch(ahead and follows),
    )
    return total, out


def _tile(outputs: int, whole: int) -> tuple[int, int]:
    """Outputs and warps a program, the fastest of those tried on an H200; 128 weights a thread."""
    owned = 8 if outputs > 4096 else 4
    return owned, 1 if owned * whole <= 4096 else min(32, max(4, owned * whole // 4096))


def _read(
    proj_RE: Tensor,
    layer: Layer,
    window_RWC: Tensor,
    scan_RHPN: Tensor,
    inject_RE: Tensor | None,
    advance: bool | Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """S c · SiLU(gate) in `dtype`, and the next window and state."""
    rows, device, inner = len(proj_RE), proj_RE.device, layer.inner
    heads, head_width, state_size = scan_RHPN.shape[1:]
    gated = torch.empty(rows, heads * head_width, dtype=dtype, device=device)
    some = advance.contiguous().view(torch.uint8) if isinstance(advance, Tensor) else None
    writes = some is not None or advance is True
    window = torch.empty(window_RWC.shape, device=device) if writes else None
    state = torch.empty(scan_RHPN.shape, device=device) if writes else None
    tensors = (
        proj_RE,
        proj_RE if inject_RE is None else inject_RE,
        inner.taps_CW,
        inner.taps_bias_C,
        inner.dt_bias_H,
        inner.a_log_H,
        inner.skip_H,
        window_RWC,
        scan_RHPN,
        gated,
        gated if window is None else window,
        gated if state is None else state,
        some,
    )
    sizes = heads * head_width, len(inner.taps_CW), head_width, state_size
    flags = {
        "HAS_INJECT": inject_RE is not None,
        "WRITE": writes,
        "SOME": some is not None,
        "W": inner.taps_CW.shape[1],
    }
    if rows == 1 and layer.groups == 1:
        _read_one(tensors, sizes, flags, heads, device)
    else:
        strides = proj_RE.stride(0), 0 if inject_RE is None else inject_RE.stride(0)
        _read_rows(tensors, sizes, strides, flags, (rows, heads, layer.groups))
    return gated, window, state


def _read_one(
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, int, int, int],
    flags: dict[str, Any],
    heads: int,
    device: torch.device,
) -> None:
    """In parts of one warp: they begin as soon as any room is left by the kernel before."""
    *_, head_width, state_size = sizes
    part = min(8, triton.next_power_of_2(head_width))
    lanes = min(32, triton.next_power_of_2(state_size))
    ahead = _can_begin_early(device)
    kernels.read_one[(heads, triton.cdiv(head_width, part))](
        *tensors,
        *sizes,
        **flags,
        P=part,
        A=triton.next_power_of_2(state_size) // lanes,
        J=lanes,
        S=triton.next_power_of_2(flags["W"]),
        AHEAD=ahead,
        num_warps=1,
        **_launch(ahead),
    )


def _read_rows(
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, int, int, int],
    strides: tuple[int, int],
    flags: dict[str, Any],
    counts: tuple[int, int, int],
) -> None:
    """It never begins early: behind a library's product it would only take room from it."""
    *_, head_width, state_size = sizes
    rows, heads, groups = counts
    part = min(16 if rows < 8 else 64, triton.next_power_of_2(head_width))
    rows_kernels.read_rows[(rows, heads, triton.cdiv(head_width, part))](
        *tensors,
        *sizes,
        *strides,
        heads,
        heads // groups,
        groups,
        **flags,
        P=part,
        N=triton.next_power_of_2(state_size),
        num_warps=4 if rows < 8 else 2,
    )


def _can_begin_early(device: torch.device) -> bool:
    """Whether kernels may begin before those before them end; `False` here turns it off."""
    if device.type != "cuda" or torch.version.cuda is None or triton.knobs.runtime.interpret:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _launch(early: bool) -> dict[str, Any]:
    """Launch options, which older GPUs would not know."""
    return {"launch_pdl": True} if early else {}
