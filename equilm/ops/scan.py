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

    Returns:
        y_BTHP (B, T, H, P) and the final state (B, H, P, N), both float32 or wider.

    Source: Dao and Gu 2024, arXiv 2405.21060.
    """
    if x_BTHP.shape[1] == 1:
        return ssd_sequential(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN)
    return ssd_chunked(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN)


def ssd_sequential(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd`, one token after the other: the definition, and the fastest way for a single token."""
    x_BTHP, dt_BTH, b_BTGN, c_BTGN = _at_least_float32(x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    heads_per_group = x_BTHP.shape[2] // b_BTGN.shape[2]
    decay_BTH = torch.exp(dt_BTH * a_H)
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
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`ssd`, quadratic inside chunks of `chunk` tokens and recurrent between them."""
    x_BTHP, dt_BTH, b_BTGN, c_BTGN = _at_least_float32(x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    tokens = x_BTHP.shape[1]
    chunk = min(chunk, tokens)
    skipped_BTHP = x_BTHP * skip_H[:, None]
    # K chunks of L tokens; the last one is filled up with dt = 0.
    x_BKHLP = _split(x_BTHP, chunk).transpose(2, 3)
    dt_BKHL = _split(dt_BTH, chunk).transpose(2, 3)
    b_BKGLN = _split(b_BTGN, chunk).transpose(2, 3)
    c_BKGLN = _split(c_BTGN, chunk).transpose(2, 3)
    groups, heads = b_BKGLN.shape[2], x_BKHLP.shape[2]

    def to_heads(tensor_BKG: Tensor) -> Tensor:
        return tensor_BKG if groups == 1 else tensor_BKG.repeat_interleave(heads // groups, dim=2)

    # Differences of a running sum lose digits in float32 once some decay is strong.
    log_decay_BKHL = torch.cumsum((dt_BKHL * a_H[:, None]).double(), dim=-1)
    between_BKHLL = (log_decay_BKHL[..., :, None] - log_decay_BKHL[..., None, :]).to(dt_BKHL.dtype)
    future_LL = torch.ones(chunk, chunk, dtype=torch.bool, device=x_BTHP.device).triu(1)
    decay_BKHLL = torch.exp(between_BKHLL.masked_fill(future_LL, -torch.inf))
    inputs_BKHLP = x_BKHLP * dt_BKHL[..., None]
    scores_BKHLL = to_heads(c_BKGLN @ b_BKGLN.mT) * decay_BKHLL
    y_BKHLP = scores_BKHLL @ inputs_BKHLP

    to_end_BKHL = decay_BKHLL[..., -1, :]
    added_BKHPN = (inputs_BKHLP * to_end_BKHL[..., None]).mT @ to_heads(b_BKGLN)
    since_start_BKHL = torch.exp(log_decay_BKHL.to(dt_BKHL.dtype))
    whole_BKH11 = since_start_BKHL[..., -1, None, None]
    carried_KBHPN = []
    for k in range(x_BKHLP.shape[1]):
        carried_KBHPN.append(state_BHPN)
        decayed = 0 if state_BHPN is None else state_BHPN * whole_BKH11[:, k]
        state_BHPN = added_BKHPN[:, k] + decayed
    assert state_BHPN is not None
    first = carried_KBHPN[0] if carried_KBHPN[0] is not None else torch.zeros_like(state_BHPN)
    if carried_KBHPN[0] is not None or len(carried_KBHPN) > 1:
        carried_BKHPN = torch.stack([first, *carried_KBHPN[1:]], dim=1)
        y_BKHLP = y_BKHLP + (to_heads(c_BKGLN) @ carried_BKHPN.mT) * since_start_BKHL[..., None]
    y_BTHP = y_BKHLP.transpose(2, 3).flatten(1, 2)[:, :tokens]
    return y_BTHP + skipped_BTHP, state_BHPN


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    return [tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in tensors]


def _split(tensor_BT: Tensor, chunk: int) -> Tensor:
    """(B, T, …) → (B, K, L, …), the end filled with zeros."""
    missing = -tensor_BT.shape[1] % chunk
    if missing:
        tensor_BT = F.pad(tensor_BT, (0, 0) * (tensor_BT.ndim - 2) + (0, missing))
    return tensor_BT.unflatten(1, (-1, chunk))
