"""The delta rule against its definition, with all gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from equilm.ops.delta import CHUNK, delta_rule, delta_rule_chunked, delta_rule_sequential
from equilm.ops.linear_attention import masked
from tests.ops.test_linear_attention import outputs_and_gradients
from tests.tolerance import assert_close

LENGTHS = [1, 2, 63, CHUNK, CHUNK + 1, 100, 257]


def make(tokens: int, steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, β in [0, 2], log decays and a state: H = 3, N = 5, P = 4."""
    return [
        torch.randn(2, tokens, 3, 5, dtype=dtype),
        normalize(torch.randn(2, tokens, steps, 3, 5, dtype=dtype), dim=-1),
        torch.randn(2, tokens, steps, 3, 4, dtype=dtype),
        2 * torch.rand(2, tokens, steps, 3, dtype=dtype),
        -100 * torch.rand(2, tokens, 3, dtype=dtype).pow(6),
        torch.randn(2, 3, 5, 4, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunks_are_the_definition(tokens: int, steps: int, dtype: torch.dtype) -> None:
    inputs = make(tokens, steps, dtype)
    expected = outputs_and_gradients(delta_rule_sequential, inputs)
    got = outputs_and_gradients(delta_rule_chunked, inputs)
    for one, other in zip(got, expected, strict=True):
        assert_close("scan", one, other)


def test_one_token_is_the_formula() -> None:
    q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH, log_decay_BTH, state_BHNP = inputs = make(1, 2)
    eye_NN = torch.eye(5, dtype=torch.float64)
    want_BHNP = log_decay_BTH[:, 0].exp()[..., None, None] * state_BHNP
    for j in range(2):
        k_BHN, beta_BH11 = k_BTJHN[:, 0, j], beta_BTJH[:, 0, j, :, None, None]
        factor_BHNN = eye_NN - beta_BH11 * torch.einsum("bhn,bhm->bhnm", k_BHN, k_BHN)
        added_BHNP = beta_BH11 * torch.einsum("bhn,bhp->bhnp", k_BHN, v_BTJHP[:, 0, j])
        want_BHNP = factor_BHNN @ want_BHNP + added_BHNP
    for run in (delta_rule, delta_rule_chunked):
        y_BTHP, last_BHNP = run(*inputs)
        assert_close("scan", last_BHNP, want_BHNP)
        assert_close("scan", y_BTHP[:, 0, :, None], q_BTHN[:, 0, :, None] @ want_BHNP)


def test_a_long_product_of_reflections_stays_one() -> None:
    """β = 2 without values turns a state and keeps its length, in float32 too."""
    q_BTHN, k_BTJHN, v_BTJHP, beta_BTJH, _, state_BHNP = make(2000, 2, torch.float32)
    beta_BTJH, zeros_111 = torch.full_like(beta_BTJH, 2.0), torch.zeros(1, 1, 1)
    inputs = (q_BTHN, k_BTJHN, torch.zeros_like(v_BTJHP), beta_BTJH, zeros_111)
    _, last_BHNP = delta_rule(*inputs, state_BHNP)
    assert not torch.allclose(last_BHNP, state_BHNP, atol=0.1)
    assert_close("float32 over 2,000 tokens", last_BHNP.norm(dim=2), state_BHNP.norm(dim=2))


@pytest.mark.parametrize("tokens", [3, 130])
def test_a_start_finds_no_state_and_padding_changes_none(tokens: int) -> None:
    inputs, start = make(tokens, 2), tokens // 2
    starts_BT = (torch.arange(tokens) == start).expand(2, -1)
    valid_B = torch.tensor([tokens, start])
    inputs[3], inputs[4] = masked(inputs[3], inputs[4], valid_B, starts_BT)
    expected = outputs_and_gradients(delta_rule_sequential, inputs)
    got = outputs_and_gradients(delta_rule_chunked, inputs)
    for one, other in zip(got, expected, strict=True):
        assert_close("scan", one, other)
    alone_BTHP, last_BHNP = delta_rule(*(tensor[:1, start:] for tensor in inputs[:5]))
    assert_close("scan", got[0][:1, start:], alone_BTHP)
    assert_close("scan", got[1][:1], last_BHNP)
    before = [*(tensor[1:, :start] for tensor in inputs[:5]), inputs[5][1:]]
    assert_close("scan", got[1][1:], delta_rule(*before)[1])
