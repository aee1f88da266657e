"""Local attention against attention, and RG-LRU against a loop; their initial values and costs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from equilm.nn.attention import Attention, AttentionConfig
from equilm.nn.local import Local, LocalConfig
from equilm.nn.rglru import RGLRU, RGLRUConfig, RGLRUState
from tests.nn.build import WIDTH
from tests.nn.reference import assert_same, mixer_of
from tests.tolerance import assert_close

SIZES: dict[str, Any] = {"heads": 2, "kv_heads": 1, "theta": 100.0}


def test_a_window_as_long_as_the_text_is_attention() -> None:
    local: Local = mixer_of(LocalConfig(window=20, **SIZES))
    whole: Attention = mixer_of(AttentionConfig(**SIZES))
    whole.load_state_dict(local.state_dict())
    x_BTD = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    assert_close("mixer", local(x_BTD)[0], whole(x_BTD)[0])


@pytest.mark.parametrize("window", [1, 3])
def test_a_token_sees_its_window_and_nothing_before(window: int) -> None:
    local: Local = mixer_of(LocalConfig(window=window, **SIZES))
    x_BTD = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 4] += 1
    differs_T = (local(x_BTD)[0] - local(changed_BTD)[0]).abs().amax((0, 2)) > 1e-9
    assert differs_T.nonzero()[:, 0].tolist() == list(range(4, min(9, 4 + window)))


def test_the_state_has_the_size_of_the_window_however_much_was_seen() -> None:
    local: Local = mixer_of(LocalConfig(window=5, **SIZES))
    _, state = local(torch.randn(1, 100, WIDTH, dtype=torch.float64))
    assert [tuple(part.shape) for part in state] == [(1, 4, 1, 4), (1, 4, 1, 4), (1,)]
    assert int(state.length_B) == 100


def test_the_cost_of_a_token_stops_growing_behind_the_window() -> None:
    local: Local = mixer_of(LocalConfig(window=4, **SIZES))
    whole: Attention = mixer_of(AttentionConfig(**SIZES))
    assert local.flops_per_token(4) == whole.flops_per_token(4)
    seen = sum(min(t + 0.5, 4) for t in range(10)) / 10
    grown = local.flops_per_token(10) - whole.flops_per_token(0)
    assert abs(grown - 4 * WIDTH * seen) < 1e-9


def test_rglru_is_a_loop() -> None:
    mixer: RGLRU = mixer_of(RGLRUConfig(heads=2, expand=2))
    with torch.no_grad():
        for bias in (mixer.bias_r, mixer.bias_i):
            bias.normal_()
    x_BTD = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    window_BWC = torch.randn(2, 3, 2 * WIDTH, dtype=torch.float64, requires_grad=True)
    h_BI = torch.randn(2, 2 * WIDTH, dtype=torch.float64, requires_grad=True)
    before = [window_BWC, h_BI]
    y_BTD, state = mixer(x_BTD, RGLRUState(window_BWC, h_BI))

    branch_BTI, gate_BTI = mixer.in_proj(x_BTD).chunk(2, dim=-1)
    padded_BSI = torch.cat([window_BWC, branch_BTI], dim=1)
    weight_r, weight_i = (
        torch.block_diag(*part.weight.view(2, 8, 8)) for part in (mixer.gate_r, mixer.gate_i)
    )
    y_TBI = []
    for t in range(9):
        taps_CW = mixer.conv1d.weight[:, 0]
        u_BI = torch.einsum("bwi,iw->bi", padded_BSI[:, t : t + 4], taps_CW) + mixer.conv1d.bias
        r_BI = torch.sigmoid(u_BI @ weight_r.T + mixer.bias_r)
        i_BI = torch.sigmoid(u_BI @ weight_i.T + mixer.bias_i)
        a_BI = torch.sigmoid(-mixer.decay) ** (8 * r_BI)
        h_BI = a_BI * h_BI + torch.sqrt(1 - a_BI**2) * i_BI * u_BI
        y_TBI.append(h_BI * F.gelu(gate_BTI[:, t], approximate="tanh"))
    expected = [mixer.out_proj(torch.stack(y_TBI, 1)), padded_BSI[:, -3:], h_BI]
    assert_same(mixer, [y_BTD, *state], expected, [x_BTD, *before])


@torch.no_grad()
def test_rglru_starts_with_decays_in_the_published_range() -> None:
    mixer: RGLRU = mixer_of(RGLRUConfig(heads=2, expand=128))
    slowest_I = torch.sigmoid(-mixer.decay) ** 8
    assert 0.9 <= float(slowest_I.min()) < 0.905
    assert 0.99 < float(slowest_I.max()) <= 0.999
