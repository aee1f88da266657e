"""Linear attention, RetNet, GLA, HGRN2, RWKV-6 and minGRU against loops from their equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.gla import GLA, GLAConfig
from equilm.nn.hgrn2 import HGRN2, HGRN2Config
from equilm.nn.key_value import KeyValue, Memory
from equilm.nn.linear_attention import LinearAttention, LinearAttentionConfig
from equilm.nn.mingru import MinGRU, MinGRUConfig, MinGRUState
from equilm.nn.retnet import RetNet, RetNetConfig
from equilm.nn.rwkv6 import RWKV6, RWKV6Config, RWKV6State
from tests.nn.build import WIDTH
from tests.nn.key_values import HEADS, heads, inputs, outer, read, rms, scale
from tests.nn.reference import assert_same, mixer_of

TOKENS = 9


def start(mixer: KeyValue) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens, a memory, and the projected tokens one after the other."""
    x_BTD, memory_BHNP = inputs(2, TOKENS, WIDTH), inputs(*mixer.init_state(2, 0)[0].shape)
    projected_BTE = x_BTD @ mixer.in_proj.effective().T
    return x_BTD, memory_BHNP, list(projected_BTE.unbind(1))


def compare(mixer: KeyValue, x_BTD: Tensor, first_BHNP: Tensor, want: list[Tensor]) -> None:
    y_BTD, state = mixer(x_BTD, Memory(first_BHNP))
    assert_same(mixer, [y_BTD, state.memory_BHNP], want, [x_BTD, first_BHNP])


def test_linear_attention_is_its_equations() -> None:
    mixer: LinearAttention = mixer_of(LinearAttentionConfig(heads=HEADS))
    x_BTD, memory_BHNP, projected = start(mixer)
    with torch.no_grad():
        memory_BHNP.abs_()  # the normaliser is a sum of positive features
    first_BHNP, y = memory_BHNP, []
    sums_BHNP, norm_BHN = memory_BHNP[..., :-1], memory_BHNP[..., -1]
    for projected_BE in projected:
        q_BHN, k_BHN, v_BHP = (heads(part) for part in projected_BE.chunk(3, dim=-1))
        q_BHN, k_BHN = F.elu(q_BHN) + 1, F.elu(k_BHN) + 1
        sums_BHNP, norm_BHN = sums_BHNP + outer(k_BHN, v_BHP), norm_BHN + k_BHN
        weight_BH1 = (q_BHN * norm_BHN).sum(-1, keepdim=True) + 1e-6
        y.append(mixer.output.out_proj((read(q_BHN, sums_BHNP) / weight_BH1).flatten(1)))
    last_BHNP = torch.cat([sums_BHNP, norm_BHN[..., None]], dim=-1)
    compare(mixer, x_BTD, first_BHNP, [torch.stack(y, 1), last_BHNP])


def test_gated_linear_attention_is_its_equations() -> None:
    mixer: GLA = mixer_of(GLAConfig(heads=HEADS, rank=3, temperature=2.0))
    x_BTD, memory_BHNP, projected = start(mixer)
    first_BHNP, y = memory_BHNP, []
    for projected_BE in projected:
        q_BI, k_BI, v_BI, gate_BI, rank_BR = projected_BE.split([4, 4, 8, 8, 3], dim=-1)
        decay_BHN = heads(mixer.decay_proj(rank_BR).sigmoid().sqrt())
        memory_BHNP = decay_BHN[..., None] * memory_BHNP + outer(heads(k_BI), heads(v_BI))
        normed_BHP = rms(read(heads(q_BI), memory_BHNP) / math.sqrt(2)) * scale(mixer)
        y.append(mixer.output.out_proj(normed_BHP.flatten(1) * F.silu(gate_BI)))
    compare(mixer, x_BTD, first_BHNP, [torch.stack(y, 1), memory_BHNP])


@pytest.mark.parametrize("bound", [0.0, 0.3])
def test_hgrn2_is_its_equations(bound: float) -> None:
    mixer: HGRN2 = mixer_of(HGRN2Config(heads=HEADS, lower_bound=bound))
    x_BTD, memory_BHNP, projected = start(mixer)
    first_BHNP, y = memory_BHNP, []
    for projected_BE in projected:
        q_BHN, f_BHN, i_BHP = (heads(part) for part in projected_BE.chunk(3, dim=-1))
        decay_BHN = bound + (1 - bound) * f_BHN.sigmoid()
        memory_BHNP = decay_BHN[..., None] * memory_BHNP + outer(1 - decay_BHN, i_BHP)
        normed_BHP = rms(read(F.silu(q_BHN), memory_BHNP)) * scale(mixer)
        y.append(mixer.output.out_proj(normed_BHP.flatten(1)))
    compare(mixer, x_BTD, first_BHNP, [torch.stack(y, 1), memory_BHNP])


def test_retention_is_its_equations() -> None:
    """The state turns: channels k and k + N/2 are a complex number that is multiplied by e^{iθ}."""
    mixer: RetNet = mixer_of(RetNetConfig(heads=HEADS, theta=100.0))
    x_BTD, memory_BHNP, projected = start(mixer)
    first_BHNP, y = memory_BHNP, []
    angle_N = 100.0 ** -(torch.arange(2, dtype=torch.float64) / 2)
    decay_H = 1 - 2.0 ** torch.tensor([-5.0, -6.0], dtype=torch.float64)
    turn_NN = torch.eye(4, dtype=torch.float64) * angle_N.repeat(2).cos()
    turn_NN = turn_NN + torch.diag(angle_N.sin(), -2) - torch.diag(angle_N.sin(), 2)
    for projected_BE in projected:
        q_BI, k_BI, v_BI, gate_BI = projected_BE.split([8, 8, 16, 16], dim=-1)
        # The token stands where it is, and what came before moves away from it.
        memory_BHNP = decay_H[:, None, None] * (turn_NN.T @ memory_BHNP)
        memory_BHNP = memory_BHNP + outer(heads(k_BI), heads(v_BI))
        normed_BHP = rms(read(heads(q_BI), memory_BHNP) / math.sqrt(4)) * scale(mixer)
        y.append(mixer.output.out_proj(normed_BHP.flatten(1) * F.silu(gate_BI)))
    compare(mixer, x_BTD, first_BHNP, [torch.stack(y, 1), memory_BHNP])


def test_rwkv6_is_its_equations() -> None:
    mixer: RWKV6 = mixer_of(RWKV6Config(heads=HEADS, blend_rank=3, decay_rank=3))
    with torch.no_grad():
        mixer.blend_out.mul_(30)
        mixer.bonus.normal_()
        mixer.decay.add_(4)
    x_BTD, last_BD, memory_BHNP = inputs(2, TOKENS, WIDTH), inputs(2, WIDTH), inputs(2, 2, 4, 4)
    y_BTD, state = mixer(x_BTD, RWKV6State(last_BD, memory_BHNP))
    leaves, before_BD, y = [x_BTD, last_BD, memory_BHNP], last_BD, []
    in_weight = mixer.blend_in.effective().view(5, 3, WIDTH)
    bias_HP = mixer.output.norm.get_parameter("bias")
    for x_BD in x_BTD.unbind(1):
        change_BD, parts = before_BD - x_BD, []
        for i in range(5):
            hidden_BR = ((x_BD + change_BD * mixer.blend_base) @ in_weight[i].T).tanh()
            parts.append(x_BD + change_BD * (mixer.blend[i] + hidden_BR @ mixer.blend_out[i]))
        r_BI, k_BI, v_BI, g_BI = (
            proj(part) for proj, part in zip(mixer.rkvg_proj, parts, strict=False)
        )
        w_BI = mixer.decay + mixer.decay_out(mixer.decay_in(parts[4]).tanh())
        added_BHNP = outer(heads(k_BI), heads(v_BI))
        read_BHP = read(heads(r_BI), memory_BHNP + mixer.bonus[..., None] * added_BHNP)
        memory_BHNP = heads((-w_BI.exp()).exp())[..., None] * memory_BHNP + added_BHNP
        centred_BHP = read_BHP - read_BHP.mean(-1, keepdim=True)
        spread_BH1 = (centred_BHP.square().mean(-1, keepdim=True) + 64e-5).sqrt()
        normed_BHP = centred_BHP / spread_BH1 * scale(mixer) + bias_HP
        y.append(mixer.output.out_proj(normed_BHP.flatten(1) * F.silu(g_BI)))
        before_BD = x_BD
    want = [torch.stack(y, 1), x_BTD[:, -1].sum(), memory_BHNP]
    got = [y_BTD, state.last_BD.sum(), state.memory_BHNP]
    assert_same(mixer, got, want, leaves)


def test_mingru_is_its_equations() -> None:
    mixer: MinGRU = mixer_of(MinGRUConfig(expand=2))
    x_BTD, h_BI, y = inputs(2, TOKENS, WIDTH), inputs(2, 2 * WIDTH), []
    y_BTD, state = mixer(x_BTD, MinGRUState(h_BI))
    leaves = [x_BTD, h_BI]
    for x_BD in x_BTD.unbind(1):
        gate_BI, candidate_BI = mixer.in_proj(x_BD).chunk(2, dim=-1)
        h_BI = (1 - gate_BI.sigmoid()) * h_BI + gate_BI.sigmoid() * candidate_BI
        y.append(mixer.out_proj(h_BI))
    assert_same(mixer, [y_BTD, state.hidden_BI], [torch.stack(y, 1), h_BI], leaves)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LinearAttentionConfig(heads=3), r"mixer.heads: expected a divisor of width = 8, got 3"),
        (GLAConfig(heads=8), r"mixer.heads: expected a divisor of width / 2 = 4, got 8"),
        (RetNetConfig(heads=0), r"mixer.heads: expected a divisor of width / 2 = 4, got 0"),
    ],
)
def test_heads_that_do_not_divide_are_named(config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer_of(config)


@torch.no_grad()
def test_long_rows_in_pieces_and_with_padding() -> None:
    """Lengths beyond a chunk; the laws' tests have four tokens."""
    for config in (RetNetConfig(heads=2), RWKV6Config(heads=2), GLAConfig(heads=2)):
        mixer, x_BTD = mixer_of(config), torch.randn(2, 150, WIDTH, dtype=torch.float64)
        y_BTD, last = mixer(x_BTD)
        first_BTD, state = mixer(x_BTD[:, :70])
        rest_BTD, after = mixer(x_BTD[:, 70:], state)
        torch.testing.assert_close(torch.cat([first_BTD, rest_BTD], 1), y_BTD)
        _, padded = mixer(x_BTD, None, None, torch.tensor([70, 150]))
        for one, other, half, some in zip(after, last, state, padded, strict=True):
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(some, torch.stack([half[0], other[1]]))
