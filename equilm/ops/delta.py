"""The delta rule: a state that forgets what a key held before it learns what it shall hold.

    S ← S + β k (v − Sᵀ k)ᵀ = (1 − β k kᵀ) S + β k vᵀ    J times a token, behind a decay a_t
    y_t = S_tᵀ q_t                                       per head

For ‖k‖ = 1 the factor has the eigenvalue 1 − β along k: β = 1 projects, β = 2 reflects, and J
reflections make any rotation of J dimensions. In chunks it is linear attention with values that
one triangular system corrects. Read `equilm/nn/deltanet.py` next.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops import fla
from equilm.ops.linear_attention import chunks
from equilm.ops.scan import at_least_float32

CHUNK = 64  # steps, J of them a token; between chunks the state is carried


def delta_rule(
    q_BTHN: Tensor,
    k_BTJHN: Tensor,
    v_BTJHP: Tensor,
    beta_BTJH: Tensor,
    log_decay_BTH: Tensor,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S ← a_t S, then J times S ← S + β k (v − Sᵀ k)ᵀ;  y_t = S_tᵀ q_t.

    Args:
        q_BTHN: (B, T, H, N) queries, T ≥ 1.
        k_BTJHN: (B, T, J, H, N) keys of length 1, or 0.
        v_BTJHP: (B, T, J, H, P) values.
        beta_BTJH: (B, T, J, H) rates in [0, 2]; beyond, states grow.
        log_decay_BTH: (B or 1, T or 1, H or 1) log a ≤ 0; −∞ empties the state.
        state_BHNP: (B, H, N, P) initial state; `None` means zeros.

    Returns:
        y_BTHP and the final state (B, H, N, P), both in float32 or wider.

    Source: Yang et al. 2024, arXiv 2406.06484 (chunks) and 2412.06464 (decay); Grazzi et al. 2024,
    arXiv 2411.12537 (β to 2); Siems et al. 2025, arXiv 2502.10297 (J steps). On a GPU, in half
    precision: `fla.py`.
    """
    run: Callable[..., tuple[Tensor, Tensor]]
    run = delta_rule_sequential if q_BTHN.shape[1] == 1 else delta_rule_chunked
    if q_BTHN.shape[3] <= fla.MAX_KEYS and (half := fla.half_type(v_BTJHP)):
        run = partial(fla.delta_rule_fla, dtype=half)
    # Autocast would compute the matrix products, and so the state, in half precision.
    with torch.autocast(q_BTHN.device.type, enabled=False):
        return run(q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH, log_decay_BTH, state_BHNP)


def delta_rule_sequential(
    q_BTHN: Tensor,
    k_BTJHN: Tensor,
    v_BTJHP: Tensor,
    beta_BTJH: Tensor,
    log_decay_BTH: Tensor,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta_rule`, one step after the other: the definition."""
    q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH = at_least_float32(q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH)
    tokens = q_BTHN.shape[1]
    if state_BHNP is None:
        state_BHNP = q_BTHN.new_zeros(len(q_BTHN), *q_BTHN.shape[2:], v_BTJHP.shape[4])
    decay_BTH = log_decay_BTH.to(q_BTHN.dtype).exp().expand(-1, tokens, -1)
    scaled_BTJHN = beta_BTJH[..., None] * k_BTJHN
    y_TBHP = []
    for q_BHN, decay_BH, *step in zip(
        *(tensor.unbind(1) for tensor in (q_BTHN, decay_BTH, k_BTJHN, v_BTJHP, scaled_BTJHN)),
        strict=True,
    ):
        state_BHNP = decay_BH[..., None, None] * state_BHNP
        for k_BHN, v_BHP, scaled_BHN in zip(
            *(part_BJHX.unbind(1) for part_BJHX in step), strict=True
        ):
            error_BH1P = v_BHP[..., None, :] - k_BHN[..., None, :] @ state_BHNP
            state_BHNP = torch.addcmul(state_BHNP, scaled_BHN[..., None], error_BH1P)
        y_TBHP.append((q_BHN[..., None, :] @ state_BHNP)[..., 0, :])
    return torch.stack(y_TBHP, dim=1), state_BHNP


def delta_rule_chunked(
    q_BTHN: Tensor,
    k_BTJHN: Tensor,
    v_BTJHP: Tensor,
    beta_BTJH: Tensor,
    log_decay_BTH: Tensor,
    state_BHNP: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`delta_rule`, by a triangular system inside chunks and recurrent between them.

    With S_0 the state before the chunk, step i adds k_i u_iᵀ, where the rows u_i solve
    u_i + β_i Σ_{j<i} a_{ij} (k_i · k_j) u_j = β_i (v_i − a_{i0} S_0ᵀ k_i).
    """
    q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH = at_least_float32(q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH)
    (tokens, heads), steps = q_BTHN.shape[1:3], k_BTJHN.shape[2]
    length = min(max(chunk // steps, 1), tokens)  # tokens of a chunk
    q_BKHTN = chunks(q_BTHN, length)
    # From here L counts steps: J a token, of which the first brings the token's decay.
    k_BKHLN, v_BKHLP, beta_BKHL1 = (
        chunks(tensor_BTJHX.flatten(1, 2), length * steps)
        for tensor_BTJHX in (k_BTJHN, v_BTJHP, beta_BTJH[..., None])
    )
    log_decay_BTH = log_decay_BTH.to(q_BTHN.dtype).expand(len(q_BTHN), tokens, heads)
    log_decay_BKHT1 = chunks(log_decay_BTH[..., None], length)
    decay_BKHLL = _decays(F.pad(log_decay_BKHT1, (0, steps - 1)).flatten(-2))
    since_BKHT1 = log_decay_BKHT1.cumsum(-2).exp()
    since_BKHL1 = since_BKHT1.repeat_interleave(steps, -2)

    added_BKHLP, removed_BKHLN = _corrected(k_BKHLN, v_BKHLP, beta_BKHL1, decay_BKHLL, since_BKHL1)
    late_BKHNL = (k_BKHLN * decay_BKHLL[..., -1, :, None]).mT
    kept_BKHNN = torch.diag_embed(since_BKHT1[..., -1, :].expand(k_BKHLN[..., 0, :].shape))
    before_BKHNP, state_BHNP = _carry(
        late_BKHNL @ added_BKHLP, kept_BKHNN - late_BKHNL @ removed_BKHLN, state_BHNP
    )
    u_BKHLP = added_BKHLP - removed_BKHLN @ before_BKHNP
    scores_BKHTL = (q_BKHTN @ k_BKHLN.mT) * decay_BKHLL[..., steps - 1 :: steps, :]
    y_BKHTP = scores_BKHTL @ u_BKHLP + (q_BKHTN * since_BKHT1) @ before_BKHNP
    return y_BKHTP.transpose(2, 3).flatten(1, 2)[:, :tokens], state_BHNP


def _corrected(
    k_BKHLN: Tensor, v_BKHLP: Tensor, beta_BKHL1: Tensor, decay_BKHLL: Tensor, since_BKHL1: Tensor
) -> tuple[Tensor, Tensor]:
    """The rows u_i without a state before the chunk, and what of that state they subtract."""
    factor_BKHLL = beta_BKHL1 * (k_BKHLN @ k_BKHLN.mT) * decay_BKHLL
    right_BKHLX = beta_BKHL1 * torch.cat([v_BKHLP, since_BKHL1 * k_BKHLN], dim=-1)
    solved_BKHLX = torch.linalg.solve_triangular(
        factor_BKHLL, right_BKHLX, upper=False, unitriangular=True
    )
    u_BKHLP, removed_BKHLN = solved_BKHLX.split([v_BKHLP.shape[-1], k_BKHLN.shape[-1]], dim=-1)
    return u_BKHLP, removed_BKHLN


def _decays(log_decay_BKHL: Tensor) -> Tensor:
    """What is left behind step i of what step j ≤ i added; 0 above the diagonal."""
    length, device = log_decay_BKHL.shape[-1], log_decay_BKHL.device
    later_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril(-1)
    # Sums of what lies between, not differences, which would lose digits.
    between_BKHLL = log_decay_BKHL[..., None].where(later_LL, 0).cumsum(-2)
    return between_BKHLL.exp().tril()


def _carry(
    added_BKHNP: Tensor, kept_BKHNN: Tensor, state_BHNP: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, and the one after the last."""
    if state_BHNP is None:
        state_BHNP = torch.zeros_like(added_BKHNP[:, 0])
    before_KBHNP = []
    for added_BHNP, kept_BHNN in zip(added_BKHNP.unbind(1), kept_BKHNN.unbind(1), strict=True):
        before_KBHNP.append(state_BHNP)
        state_BHNP = added_BHNP + kept_BHNN @ state_BHNP
    return torch.stack(before_KBHNP, dim=1), state_BHNP
