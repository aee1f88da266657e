"""Linear attention with decays: token by token, and in chunks.

    S_t = diag(a_t) S_{t−1} + k_t v_tᵀ,    y_t = S_tᵀ q_t      per head

All functions have one meaning; `linear_attention` picks by length. Decays come as logarithms ≤ 0,
one a head or one a key channel; only sums of them are exponentiated, so that nothing overflows and
−∞, which empties the state, is a decay like others. Read `delta.py` next.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops import fla
from equilm.ops.scan import at_least_float32, ssd

CHUNK = 64  # tokens, a power of 2; between chunks the state is carried


def linear_attention(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHP: Tensor,
    log_decay_BTHX: Tensor,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(a_t) S_{t−1} + k_t v_tᵀ;  y_t = S_tᵀ q_t.

    Args:
        q_BTHN: (B, T, H, N) queries, T ≥ 1.
        k_BTHN: (B, T, H, N) keys.
        v_BTHP: (B, T, H, P) values.
        log_decay_BTHX: (B or 1, T or 1, H or 1, X) log a ≤ 0, X = N or 1.
        state_BHNP: (B, H, N, P) initial state; `None` means zeros.

    Returns:
        y_BTHP and the final state (B, H, N, P), both in float32 or wider.

    Source: Katharopoulos et al. 2020, arXiv 2006.16236; Yang et al. 2023, arXiv 2312.06635. On a
    GPU, in half precision: `fla.py`.
    """
    run: Callable[..., tuple[Tensor, Tensor]]
    run = linear_attention_sequential if q_BTHN.shape[1] == 1 else linear_attention_chunked
    one_a_head = log_decay_BTHX.numel() == log_decay_BTHX.shape[2]
    if half := fla.half_type(v_BTHP):
        run = partial(fla.linear_attention_fla, dtype=half)
    elif q_BTHN.is_cuda and q_BTHN.shape[1] > 1 and one_a_head:
        run = linear_attention_by_scan
    # Autocast would compute the matrix products, and so the state, in half precision.
    with torch.autocast(q_BTHN.device.type, enabled=False):
        return run(q_BTHN, k_BTHN, v_BTHP, log_decay_BTHX, state_BHNP)


def masked(
    input_BTX: Tensor, log_decay_BTX: Tensor, valid_B: Tensor | None, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Let the state pass unchanged behind `valid_B`, and be empty where `starts_BT` is true.

    Args:
        input_BTX: (B, T, …) a factor of what tokens add to the state: keys, or rates.
        log_decay_BTX: (B or 1, T or 1, …) log a.
        valid_B: (B,) tokens of each row that count; `None` means all.
        starts_BT: (B, T) bool, tokens that open a document; `None` means none.

    Returns:
        Both with 0 behind `valid_B`, and −∞ for the decay of a start.
    """
    if starts_BT is not None:
        log_decay_BTX = log_decay_BTX.masked_fill(_like(starts_BT, log_decay_BTX), -torch.inf)
    if valid_B is not None:
        padding_BT = torch.arange(input_BTX.shape[1], device=valid_B.device) >= valid_B[:, None]
        input_BTX = input_BTX.masked_fill(_like(padding_BT, input_BTX), 0)
        log_decay_BTX = log_decay_BTX.masked_fill(_like(padding_BT, log_decay_BTX), 0)
    return input_BTX, log_decay_BTX


def linear_attention_sequential(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHP: Tensor,
    log_decay_BTHX: Tensor,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_attention`, one token after the other: the definition."""
    q_BTHN, k_BTHN, v_BTHP = at_least_float32(q_BTHN, k_BTHN, v_BTHP)
    if state_BHNP is None:
        state_BHNP = q_BTHN.new_zeros(len(q_BTHN), *k_BTHN.shape[2:], v_BTHP.shape[3])
    decay_BTHX1 = log_decay_BTHX.to(q_BTHN.dtype).exp()[..., None]
    decay_BTHX1 = decay_BTHX1.expand(-1, q_BTHN.shape[1], -1, -1, -1)
    y_TBHP = []
    for q_BHN, k_BHN, v_BHP, decay_BHX1 in zip(
        *(tensor.unbind(1) for tensor in (q_BTHN, k_BTHN, v_BTHP, decay_BTHX1)), strict=True
    ):
        added_BHNP = k_BHN[..., None] * v_BHP[..., None, :]
        state_BHNP = torch.addcmul(added_BHNP, decay_BHX1, state_BHNP)
        y_TBHP.append((q_BHN[..., None, :] @ state_BHNP)[..., 0, :])
    return torch.stack(y_TBHP, dim=1), state_BHNP


def linear_attention_chunked(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHP: Tensor,
    log_decay_BTHX: Tensor,
    state_BHNP: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`linear_attention`, quadratic inside chunks of `chunk` tokens and recurrent between them."""
    q_BTHN, k_BTHN, v_BTHP = at_least_float32(q_BTHN, k_BTHN, v_BTHP)
    tokens = q_BTHN.shape[1]
    chunk = min(chunk, 1 << (tokens - 1).bit_length())
    log_decay_BTHX = log_decay_BTHX.to(q_BTHN.dtype).expand(-1, tokens, -1, -1)
    q_BKHLN, k_BKHLN, v_BKHLP, log_decay_BKHLX = (
        chunks(tensor_BTHX, chunk) for tensor_BTHX in (q_BTHN, k_BTHN, v_BTHP, log_decay_BTHX)
    )
    scores_BKHLL, since_BKHLX, until_BKHLX = _scores(q_BKHLN, k_BKHLN, log_decay_BKHLX)
    added_BKHNP = (k_BKHLN * until_BKHLX.exp()).mT @ v_BKHLP
    decay_BKHX1 = since_BKHLX[..., -1, :, None].exp()
    before_BKHNP, state_BHNP = _carry(added_BKHNP, decay_BKHX1, state_BHNP)
    y_BKHLP = scores_BKHLL @ v_BKHLP + (q_BKHLN * since_BKHLX.exp()) @ before_BKHNP
    return y_BKHLP.transpose(2, 3).flatten(1, 2)[:, :tokens], state_BHNP


def linear_attention_by_scan(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHP: Tensor,
    log_decay_BTHX: Tensor,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_attention` where a head has one decay for all tokens: Mamba2's scan with steps of 1.

    It is here for the kernels of that scan.
    """
    q_BTHN, k_BTHN, v_BTHP = at_least_float32(q_BTHN, k_BTHN, v_BTHP)
    heads = q_BTHN.shape[2]
    y_BTHP, state_BHPN = ssd(
        v_BTHP,
        q_BTHN.new_ones(q_BTHN.shape[:3]),
        log_decay_BTHX.to(q_BTHN.dtype).flatten().expand(heads).contiguous(),
        k_BTHN,
        q_BTHN,
        q_BTHN.new_zeros(heads),
        None if state_BHNP is None else state_BHNP.mT,
    )
    return y_BTHP, state_BHPN.mT


def _scores(
    q_BKHLN: Tensor, k_BKHLN: Tensor, log_decay_BKHLX: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What token i reads of token j ≤ i; logs of the decays since the chunk began, until it ends.

    Blocks of one token are joined to blocks of two, four, …: between two neighbours the decay from
    j to i is one until the middle times one since the middle, each ≤ 1.
    """
    q_XKLN, k_XKLN = q_BKHLN[..., None, :], k_BKHLN[..., None, :]
    scores_XKLL = (q_XKLN * k_XKLN).sum(-1, keepdim=True)
    since_XKLN = log_decay_BKHLX[..., None, :]
    until_XKLN = torch.zeros_like(since_XKLN)
    while scores_XKLL.shape[-3] > 1:
        since1, since2 = since_XKLN[..., ::2, :, :], since_XKLN[..., 1::2, :, :]
        until1, until2 = until_XKLN[..., ::2, :, :], until_XKLN[..., 1::2, :, :]
        late_XKLN, early_XKLN = q_XKLN[..., 1::2, :, :], k_XKLN[..., ::2, :, :]
        between_XKLL = (late_XKLN * since2.exp()) @ (early_XKLN * until1.exp()).mT
        above_XKLL = F.pad(scores_XKLL[..., ::2, :, :], (0, between_XKLL.shape[-1]))
        below_XKLL = torch.cat([between_XKLL, scores_XKLL[..., 1::2, :, :]], dim=-1)
        scores_XKLL = torch.cat([above_XKLL, below_XKLL], dim=-2)
        q_XKLN, k_XKLN = (
            tensor.unflatten(-3, (-1, 2)).flatten(-3, -2) for tensor in (q_XKLN, k_XKLN)
        )
        since_XKLN, until_XKLN = (
            torch.cat([since1, since2 + since1[..., -1:, :]], dim=-2),
            torch.cat([until1 + since2[..., -1:, :], until2], dim=-2),
        )
    return scores_XKLL[..., 0, :, :], since_XKLN[..., 0, :, :], until_XKLN[..., 0, :, :]


def _carry(
    added_BKHNP: Tensor, decay_BKHX1: Tensor, state_BHNP: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, and the one after the last."""
    if state_BHNP is None:
        state_BHNP = torch.zeros_like(added_BKHNP[:, 0])
    before_KBHNP = []
    for added_BHNP, decay_BHX1 in zip(added_BKHNP.unbind(1), decay_BKHX1.unbind(1), strict=True):
        before_KBHNP.append(state_BHNP)
        state_BHNP = torch.addcmul(added_BHNP, decay_BHX1, state_BHNP)
    return torch.stack(before_KBHNP, dim=1), state_BHNP


def chunks(tensor_BTHX: Tensor, chunk: int) -> Tensor:
    """(B, T, H, X) → (B, K, H, L, X), the end filled with zeros: no decay, nothing added."""
    padded_BTHX = F.pad(tensor_BTHX, (0, 0, 0, 0, 0, -tensor_BTHX.shape[1] % chunk))
    return padded_BTHX.unflatten(1, (-1, chunk)).transpose(2, 3)


def _like(mask_BT: Tensor, tensor_BTX: Tensor) -> Tensor:
    return mask_BT.reshape(*mask_BT.shape, *[1] * (tensor_BTX.ndim - 2))
