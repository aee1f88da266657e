"""H3, Hyena, Liquid-S4 and SRU against loops over their definitions, with all gradients."""

import math

import pytest
import torch
from torch import Tensor

from equilm.nn.diagonal import Diagonal
from equilm.nn.h3 import H3, H3Config, H3State
from equilm.nn.hyena import Hyena, HyenaConfig, HyenaState
from equilm.nn.liquid import LiquidS4, LiquidS4Config
from equilm.nn.sru import SRU, SRUConfig, SRUState
from equilm.nn.state_space import StateSpaceState
from equilm.ops.conv import MAX_SUMMED, conv
from equilm.ops.long_conv import LONG, long_conv
from tests.nn.build import WIDTH
from tests.nn.reference import assert_same, mixer_of
from tests.tolerance import assert_close


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def system(part: Diagonal) -> tuple[Tensor, Tensor, Tensor]:
    """Decay, input and output weights, by the formulas of a held input."""
    rate_IN = -part.log_A_real.exp() + 1j * part.A_imag
    step_I1 = part.log_dt.exp()[:, None]
    decay_IN = torch.exp(rate_IN * step_I1)
    return decay_IN, (decay_IN - 1) / rate_IN, part.C[..., 0] + 1j * part.C[..., 1]


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_h3_is_a_loop(tokens: int) -> None:
    mixer: H3 = mixer_of(H3Config(expand=2, shift_size=5, state_size=6))
    x_BTD = drawn(2, tokens, WIDTH)
    window_BWI, hidden_BIN2 = drawn(2, 4, 2 * WIDTH), drawn(2, 2 * WIDTH, 3, 2)
    y_BTD, state = mixer(x_BTD, H3State(window_BWI, hidden_BIN2))

    decay_IN, b_IN, c_IN = system(mixer.system)
    q_BTI, k_BTI, v_BTI = mixer.in_proj(x_BTD).chunk(3, dim=-1)
    padded_BSI, h_BIN = torch.cat([window_BWI, k_BTI], dim=1), torch.view_as_complex(hidden_BIN2)
    y_TBI = []
    for t in range(tokens):
        taps_IW = mixer.shift.weight[:, 0]
        shifted_BI = torch.einsum("bwi,iw->bi", padded_BSI[:, t : t + 5], taps_IW)
        u_BI = (shifted_BI + mixer.shift.bias) * v_BTI[:, t]
        h_BIN = decay_IN * h_BIN + b_IN * u_BI[..., None]
        remembered_BI = 2 * (c_IN * h_BIN).sum(-1).real
        y_TBI.append(q_BTI[:, t] * (remembered_BI + mixer.D * u_BI))
    expected = [
        mixer.out_proj(torch.stack(y_TBI, 1)),
        padded_BSI[:, -4:],
        torch.view_as_real(h_BIN),
    ]
    assert_same(mixer, [y_BTD, *state], expected, [x_BTD, window_BWI, hidden_BIN2])


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_liquid_s4_is_a_loop(tokens: int) -> None:
    mixer: LiquidS4 = mixer_of(LiquidS4Config(expand=2, state_size=6, gated=True))
    x_BTD = drawn(2, tokens, WIDTH)
    hidden_BIN2, input_BI = drawn(2, 2 * WIDTH, 3, 2), drawn(2, 2 * WIDTH)
    last_BI12 = torch.stack([input_BI, torch.zeros_like(input_BI)], dim=-1)[:, :, None]
    before_BIN2 = torch.cat([hidden_BIN2, last_BI12], dim=2)
    y_BTD, state = mixer(x_BTD, StateSpaceState(before_BIN2))

    decay_IN, b_IN, c_IN = system(mixer.system)
    u_BTI, gate_BTI = mixer.in_proj(x_BTD).chunk(2, dim=-1)
    h_BIN, before_BI, y_TBI = torch.view_as_complex(hidden_BIN2), input_BI, []
    for u_BI in u_BTI.unbind(1):
        h_BIN = decay_IN * h_BIN + b_IN * u_BI[..., None]
        h_BIN = h_BIN + b_IN**2 * (u_BI * before_BI)[..., None]
        y_TBI.append(2 * (c_IN * h_BIN).sum(-1).real + mixer.D * u_BI)
        before_BI = u_BI
    y_BTI = torch.nn.functional.gelu(torch.stack(y_TBI, 1)) * torch.nn.functional.silu(gate_BTI)
    after_BIN = torch.cat([h_BIN, before_BI[..., None] + 0j], dim=-1)
    expected = [mixer.out_proj(y_BTI), torch.view_as_real(after_BIN)]
    assert_same(mixer, [y_BTD, state.hidden_BX2], expected, [x_BTD, hidden_BIN2, input_BI])


def filter_by_hand(mixer: Hyena, length: int, features: int) -> Tensor:
    """The taps (I, L), one position after the other."""
    made, net = [], mixer.filter
    for t in range(length):
        angles = [2 * math.pi * band * t / length for band in range((features - 1) // 2)]
        position = [t / length, *map(math.cos, angles), *(-math.sin(angle) for angle in angles)]
        h_U = torch.tensor(position, dtype=torch.float64)
        for weight, bias in zip(net.weights, net.biases, strict=False):
            h_U = torch.sin(net.frequency * (weight @ h_U + bias))
        slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
        rate_I = slow + (fast - slow) * torch.arange(WIDTH, dtype=torch.float64) / (WIDTH - 1)
        made.append(net.weights[3] @ h_U * torch.exp(-rate_I * t / length))
    return torch.stack(made, dim=1)


@pytest.mark.parametrize("tokens", [1, 4, LONG + 1])
def test_hyena_is_its_sums(tokens: int) -> None:
    mixer: Hyena = mixer_of(HyenaConfig(filter_length=7, features=5, hidden=4))
    x_BTD = drawn(2, tokens, WIDTH)
    window_BWC, past_BSI = drawn(2, 2, 3 * WIDTH), drawn(2, 6, WIDTH)
    y_BTD, state = mixer(x_BTD, HyenaState(window_BWC, past_BSI))

    kernel_IL = filter_by_hand(mixer, 7, 5)
    padded_BSC = torch.cat([window_BWC, mixer.in_proj(x_BTD)], dim=1)
    taps_CW, u_BSI, y_TBI = mixer.conv1d.weight[:, 0], past_BSI, []
    for t in range(tokens):
        short_BC = torch.einsum("bwc,cw->bc", padded_BSC[:, t : t + 3], taps_CW)
        p_BI, k_BI, v_BI = (short_BC + mixer.conv1d.bias).chunk(3, dim=-1)
        u_BSI = torch.cat([u_BSI, (k_BI * v_BI)[:, None]], dim=1)
        long_BI = torch.einsum("bsi,is->bi", u_BSI[:, -7:].flip(1), kernel_IL)
        y_TBI.append(p_BI * (long_BI + mixer.D * u_BSI[:, -1]))
    expected = [mixer.out_proj(torch.stack(y_TBI, 1)), padded_BSC[:, -2:], u_BSI[:, -6:]]
    assert_same(mixer, [y_BTD, *state], expected, [x_BTD, window_BWC, past_BSI])


@pytest.mark.parametrize("tokens", [1, 5, LONG, LONG + 9])
def test_a_long_convolution_is_its_sums(tokens: int) -> None:
    u_BTI, kernel_IL, past_BSI = drawn(2, tokens, 3), drawn(3, 9), drawn(2, 8, 3)
    for past in (None, past_BSI):
        padded_BSI = torch.cat([torch.zeros_like(past_BSI) if past is None else past, u_BTI], 1)
        want_BIT = torch.nn.functional.conv1d(padded_BSI.mT, kernel_IL.flip(1)[:, None], groups=3)
        assert_close("scan", long_conv(u_BTI, kernel_IL, past), want_BIT.mT)


def test_many_taps_give_what_few_give_one_by_one() -> None:
    """Behind a start, and so with any `starts`, taps are always summed one by one."""
    taps = MAX_SUMMED + 3
    x_BTC, weight_CW, bias_C = drawn(2, 9, 4), drawn(4, taps), drawn(4)
    window_BWC, valid_B = drawn(2, taps - 1, 4), torch.tensor([3, 9])
    never_BT = torch.zeros(2, 9, dtype=torch.bool)
    for one, other in zip(
        conv(x_BTC, weight_CW, bias_C, window_BWC, valid_B),
        conv(x_BTC, weight_CW, bias_C, window_BWC, valid_B, never_BT),
        strict=True,
    ):
        assert_close("conv", one, other)


def test_sru_is_a_loop() -> None:
    mixer: SRU = mixer_of(SRUConfig())
    with torch.no_grad():
        for leaf in (mixer.bias_f, mixer.bias_r, mixer.peep_f, mixer.peep_r):
            leaf.normal_()
    x_BTD, before_BD = drawn(2, 9, WIDTH), drawn(2, WIDTH)
    y_BTD, state = mixer(x_BTD, SRUState(before_BD))

    c_BD, h_TBD = before_BD, []
    for x_BD in x_BTD.unbind(1):
        u_BD, f_BD, r_BD = mixer.in_proj(x_BD).chunk(3, dim=-1)
        f_BD = torch.sigmoid(f_BD + mixer.peep_f * c_BD + mixer.bias_f)
        r_BD = torch.sigmoid(r_BD + mixer.peep_r * c_BD + mixer.bias_r)
        c_BD = f_BD * c_BD + (1 - f_BD) * u_BD
        h_TBD.append(r_BD * c_BD + (1 - r_BD) * math.sqrt(3) * x_BD)
    expected = [mixer.out_proj(torch.stack(h_TBD, 1)), c_BD]
    assert_same(mixer, [y_BTD, state.cell_BD], expected, [x_BTD, before_BD])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"features": 4}, "features: expected an odd integer >= 3, got 4"),
        ({"filter_length": 0}, "filter_length: expected an integer >= 1, got 0"),
        ({"frequency": 0.0}, "frequency: expected a number > 0, got 0.0"),
    ],
)
def test_settings_of_hyena_out_of_range(settings: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{told}$"):
        HyenaConfig(**settings)  # type: ignore[arg-type]
