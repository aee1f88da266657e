"""S4, S4D, DSS and S5 against loops over complex numbers; both views; other sampling rates."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.nn.dss import DSS, DSSConfig
from equilm.nn.s4 import S4, S4Config
from equilm.nn.s4d import S4D, S4DConfig, initial_eigenvalues
from equilm.nn.s5 import S5, S5Config
from equilm.nn.state_space import StateSpace, StateSpaceState
from equilm.ops.dplr import discrete
from tests.nn.build import WIDTH
from tests.nn.reference import assert_same, mixer_of
from tests.tolerance import assert_close

System = tuple[Tensor, Tensor, Tensor, float]  # rates, input and output weights, factor of Re
CONFIGS: dict[str, Any] = {
    "s4d": S4DConfig(state_size=4, expand=2, gated=True),
    "s4d-bilinear": S4DConfig(state_size=4, discretisation="bilinear", init="real"),
    "dss": DSSConfig(state_size=4),
    "s4": S4Config(state_size=4, gated=True),
    "s5": S5Config(state_size=8, blocks=2),
    "s5-bilinear": S5Config(state_size=4, blocks=1, discretisation="bilinear", expand=2),
}


def transition(rate: Tensor, step: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    if rule == "zoh":
        return torch.exp(rate * step), (torch.exp(rate * step) - 1) / rate
    return (1 + rate * step / 2) / (1 - rate * step / 2), step / (1 - rate * step / 2)


def loop(mixer: Any, u_BTI: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The linear system of each mixer, written from its equations."""
    rule, y_TBI = getattr(mixer.config, "discretisation", "zoh"), []
    if isinstance(mixer, S4):
        found = mixer.system()
        (a_INN, b_IN), h = discrete(found), torch.cat([h, h.conj()], -1)
        for u_BI in u_BTI.unbind(1):
            h = (a_INN @ h[..., None])[..., 0] + b_IN * u_BI[..., None]
            y_TBI.append((h * found.c_IN).sum(-1).real)
        return torch.stack(y_TBI, 1), h[..., : h.shape[-1] // 2]
    if isinstance(mixer, S5):
        rate = mixer.Lambda_re + 1j * mixer.Lambda_im
        decay, gain = transition(rate, mixer.log_step.exp(), rule)
        into, out = torch.view_as_complex(mixer.B), torch.view_as_complex(mixer.C)
        for u_BI in u_BTI.unbind(1):
            h = h * decay + gain * ((u_BI + 0j) @ into.T)
            y_TBI.append(2 * (h @ out.T).real)
        return torch.stack(y_TBI, 1), h
    if isinstance(mixer, S4D):
        rate, out, factor = -mixer.log_A_real.exp() + 1j * mixer.A_imag, mixer.C, 2
    else:
        assert isinstance(mixer, DSS)
        rate, out, factor = -mixer.Lambda_re.exp() + 1j * mixer.Lambda_im, mixer.W, 1
    decay, gain = transition(rate, mixer.log_dt.exp()[:, None], rule)
    for u_BI in u_BTI.unbind(1):
        h = h * decay + gain * u_BI[..., None]
        y_TBI.append(factor * (h * torch.view_as_complex(out)).sum(-1).real)
    return torch.stack(y_TBI, 1), h


@pytest.mark.parametrize("tokens", [1, 9, 70])
@pytest.mark.parametrize("kind", CONFIGS)
def test_outputs_state_and_gradients_are_those_of_a_loop(kind: str, tokens: int) -> None:
    mixer: StateSpace = mixer_of(CONFIGS[kind])
    x_BTD = torch.randn(2, tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    before_BX2 = torch.randn(2, *mixer.shape, 2, dtype=torch.float64, requires_grad=True)
    y_BTD, state = mixer(x_BTD, StateSpaceState(before_BX2))
    u_BTI, *gate = mixer.in_proj(x_BTD).split(mixer.inner, dim=-1)
    y_BTI, last = loop(mixer, u_BTI, torch.view_as_complex(before_BX2))
    y_BTI = torch.nn.functional.gelu(y_BTI + mixer.D * u_BTI)
    if gate:
        y_BTI = y_BTI * torch.nn.functional.silu(gate[0])
    expected = [mixer.out_proj(y_BTI), torch.view_as_real(last)]
    assert_same(mixer, [y_BTD, state.hidden_BX2], expected, [x_BTD, before_BX2])


@pytest.mark.parametrize("kind", ["s4", "s4d", "dss", "s5", "s5-bilinear"])
@torch.no_grad()
def test_a_signal_sampled_half_as_often_gives_the_same_with_twice_the_step(kind: str) -> None:
    """With the input held, samples of a finer grid are samples of the same system."""
    config = replace(CONFIGS[kind], gated=False)
    fine: StateSpace = mixer_of(config)
    coarse: StateSpace = mixer_of(replace(config, step_scale=2.0))
    coarse.load_state_dict(fine.state_dict())
    time = torch.arange(200, dtype=torch.float64)[:, None] / 200
    u_BTI = torch.sin(torch.randn(fine.inner) + 5 * time)[None]
    if kind not in ("s4", "s5-bilinear"):  # Exact for inputs that are held between samples.
        u_BTI = u_BTI[:, ::2].repeat_interleave(2, dim=1)
    empty = torch.view_as_complex(fine.init_state(1, 0).hidden_BX2)
    fine_BTI, _ = fine.ssm(u_BTI, empty, None)
    coarse_BTI, _ = coarse.ssm(u_BTI[:, 1::2], empty, None)
    unscaled_BTI, _ = fine.ssm(u_BTI[:, 1::2], empty, None)
    size = fine_BTI.abs().amax()
    bound = 1e-10 if kind not in ("s4", "s5-bilinear") else 0.03
    assert (coarse_BTI - fine_BTI[:, 1::2]).abs().amax() < bound * size
    assert (unscaled_BTI - fine_BTI[:, 1::2]).abs().amax() > 0.1 * size


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_float32_stays_close_over_a_long_sequence(kind: str) -> None:
    mixer = mixer_of(CONFIGS[kind])
    x_BTD = torch.randn(1, 2000, WIDTH, dtype=torch.float64)
    expected_BTD, _ = mixer(x_BTD)
    got_BTD, state = mixer.float()(x_BTD.float())
    assert state.hidden_BX2.dtype == torch.float32
    assert_close("float32 over 2,000 tokens", got_BTD, expected_BTD, dtype=torch.float32)


def test_initial_eigenvalues_are_the_closed_forms() -> None:
    lin, inv, real = (initial_eigenvalues(name, 6) for name in ("lin", "inv", "real"))
    for n in range(3):
        assert complex(lin[n]) == pytest.approx(-0.5 + 1j * torch.pi * n)
        assert complex(inv[n]) == pytest.approx(-0.5 + 1j * 6 / torch.pi * (6 / (2 * n + 1) - 1))
        assert complex(real[n]) == pytest.approx(-(n + 1))
    # Inv approximates HiPPO's normal part, which "legs" takes itself.
    legs_N, inv_N = (initial_eigenvalues(name, 64).imag.sort().values for name in ("legs", "inv"))
    torch.testing.assert_close(legs_N[-3:], inv_N[-3:], rtol=0.08, atol=0)
