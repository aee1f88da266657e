"""The selective scan of Mamba2 (state space duality): token by token, and in chunks.

    S_t = exp(dt_t · a) S_{t−1} + dt_t · x_t ⊗ b_t,    y_t = S_t c_t + skip · x_t      per head

Both functions have one signature and one meaning; `ssd` picks by length. A token with dt = 0 leaves
the state untouched, which is how padding is skipped. Read `equilm/nn/mamba2.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens; the quadratic part costs O(CHUNK) a token, the carried part O(N P / CHUNK)


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(dt_t a) S_{t−1} + dt_t x_t ⊗ b_t;  y_t = S_t c_t + skip x_t.

    Args:
        x_BTHP: (B, T, H, P) values, T ≥ 1.
        dt_BTH: (B, T, H) step sizes ≥ 0.
        a_H: (H,) decay rates < 0.
        b_BTGN: (B, T, G, N) input directions; each of the G groups serves H / G heads.
        c_BTGN: (B, T, G, N) output directions.
        skip_H: (H,) weight of the direct path.
        state_BHPN: (B, H, P, N) initial state; `None` means zeros.
        starts_BT: (B, T) bool: tokens that find a state of zeros.

    Returns:
        y_BTHP (B, T, H, P) in float32 or wider (on a GPU, in the type of x), and the final state
        (B, H, P, N) in float32 or wider.

    Source: Dao and Gu 2024, arXiv 2405.21060. On a GPU: `scan_triton.py`.
    """
    has_kernel = x_BTHP.is_cuda and x_BTHP.dtype != torch.float64 and x_BTHP.shape[1] > 1
    if has_kernel:
        from equilm.ops.scan_triton import ssd_triton

        return ssd_triton(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN, starts_BT)
    scan = ssd_sequential if x_BTHP.shape[1] == 1 else ssd_chunked
    # Autocast would compute the matrix products, and so the state, in half precision.
    with torch.autocast(x_BTHP.device.type, enabled=False):
        return scan(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN, starts_BT)


def ssd_sequential(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd`, one token after the other: the definition, and the fastest way for a single token."""
    x_BTHP, dt_BTH, b_BTGN, c_BTGN = at_least_float32(x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    heads_per_group = x_BTHP.shape[2] // b_BTGN.shape[2]
    decay_BTH = torch.exp(dt_BTH * a_H)
    if starts_BT is not None:
        decay_BTH = decay_BTH.masked_fill(starts_BT[..., None], 0)
    inputs_BTHP = x_BTHP * dt_BTH[..., None]
    y_TBHP = []
    for t in range(x_BTHP.shape[1]):
        b_BH1N = b_BTGN[:, t].repeat_interleave(heads_per_group, dim=1)[:, :, None, :]
        c_BHN1 = c_BTGN[:, t].repeat_interleave(heads_per_group, dim=1)[..., None]
        update_BHPN = inputs_BTHP[:, t, :, :, None] * b_BH1N
        if state_BHPN is not None:
            update_BHPN = torch.addcmul(update_BHPN, state_BHPN, decay_BTH[:, t, :, None, None])
        state_BHPN = update_BHPN
        y_TBHP.append((state_BHPN @ c_BHN1)[..., 0])
    assert state_BHPN is not None
    return torch.stack(y_TBHP, dim=1) + x_BTHP * skip_H[:, None], state_BHPN


def ssd_chunked(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BT: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`ssd`, quadratic inside chunks of `chunk` tokens and recurrent between them."""
    x_BTHP, dt_BTH, b_BTGN, c_BTGN = at_least_float32(x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    tokens, heads = x_BTHP.shape[1:3]
    heads_per_group = heads // b_BTGN.shape[2]
    # K chunks of L tokens; the last one is filled up with dt = 0.
    x_BKHLP, dt_BKHL, b_BKGLN, c_BKGLN = (
        _split(tensor_BT, min(chunk, tokens)).transpose(2, 3)
        for tensor_BT in (x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    )
    starts_BKL = None if starts_BT is None else _split(starts_BT, min(chunk, tokens))
    decay_BKHLL, since_start_BKHL = _decays(dt_BKHL * a_H[:, None], starts_BKL)
    inputs_BKHLP = x_BKHLP * dt_BKHL[..., None]
    scores_BKHLL = _to_heads(c_BKGLN @ b_BKGLN.mT, heads_per_group) * decay_BKHLL
    y_BKHLP = scores_BKHLL @ inputs_BKHLP

    to_end_BKHL1 = decay_BKHLL[..., -1, :, None]
    added_BKHPN = (inputs_BKHLP * to_end_BKHL1).mT @ _to_heads(b_BKGLN, heads_per_group)
    if state_BHPN is None and added_BKHPN.shape[1] == 1:
        state_BHPN = added_BKHPN[:, 0]
    else:
        before_BKHPN, state_BHPN = _carry(added_BKHPN, since_start_BKHL[..., -1], state_BHPN)
        read_BKHLP = _to_heads(c_BKGLN, heads_per_group) @ before_BKHPN.mT
        y_BKHLP = y_BKHLP + read_BKHLP * since_start_BKHL[..., None]
    y_BTHP = y_BKHLP.transpose(2, 3).flatten(1, 2)[:, :tokens]
    return y_BTHP + x_BTHP * skip_H[:, None], state_BHPN


def _decays(log_decay_BKHL: Tensor, starts_BKL: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is left at token i of token j's input, and of the state before the chunk."""
    if starts_BKL is not None:
        # The decay of a start is zero, and its logarithm would make differences of infinities.
        log_decay_BKHL = log_decay_BKHL.masked_fill(starts_BKL[:, :, None], 0)
    # Differences of a running sum lose digits in float32 once some decay is strong.
    total_BKHL = torch.cumsum(log_decay_BKHL.double(), dim=-1)
    between_BKHLL = (total_BKHL[..., :, None] - total_BKHL[..., None, :]).to(log_decay_BKHL.dtype)
    length, device = log_decay_BKHL.shape[-1], log_decay_BKHL.device
    future_LL = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    decay_BKHLL = torch.exp(between_BKHLL.masked_fill(future_LL, -torch.inf))
    since_start_BKHL = torch.exp(total_BKHL.to(log_decay_BKHL.dtype))
    if starts_BKL is not None:
        number_BKL = starts_BKL.cumsum(-1)
        parted_BKLL = number_BKL[..., :, None] != number_BKL[..., None, :]
        decay_BKHLL = decay_BKHLL.masked_fill(parted_BKLL[:, :, None], 0)
        since_start_BKHL = since_start_BKHL.masked_fill((number_BKL > 0)[:, :, None], 0)
    return decay_BKHLL, since_start_BKHL


def _carry(
    added_BKHPN: Tensor, decay_BKH: Tensor, state_BHPN: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, and the one after the last."""
    if state_BHPN is None:
        state_BHPN = torch.zeros_like(added_BKHPN[:, 0])
    before_KBHPN = []
    for k in range(added_BKHPN.shape[1]):
        before_KBHPN.append(state_BHPN)
        decayed_BHPN = state_BHPN * decay_BKH[:, k, :, None, None]
        state_BHPN = added_BKHPN[:, k] + decayed_BHPN
    return torch.stack(before_KBHPN, dim=1), state_BHPN


def _to_heads(tensor_BKG: Tensor, heads_per_group: int) -> Tensor:
    """Repeat each group for its heads; one group is left to broadcasting."""
    if tensor_BKG.shape[2] == 1:
        return tensor_BKG
    return tensor_BKG.repeat_interleave(heads_per_group, dim=2)


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Return half precision widened, and everything else as it is."""
    return [tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in tensors]


def _split(tensor_BT: Tensor, chunk: int) -> Tensor:
    """(B, T, …) → (B, K, L, …), the end filled with zeros."""
    missing = -tensor_BT.shape[1] % chunk
    if missing:
        tensor_BT = F.pad(tensor_BT, (0, 0) * (tensor_BT.ndim - 2) + (0, missing))
    return tensor_BT.unflatten(1, (-1, chunk))
