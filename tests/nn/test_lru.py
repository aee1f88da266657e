"""LRU against a loop over complex matrices, and its initial values."""

import math

import torch

from equilm.nn.lru import LRU, LRUConfig
from equilm.nn.state_space import StateSpaceState
from tests.nn.build import WIDTH
from tests.nn.reference import assert_same, mixer_of


def test_outputs_state_and_gradients_are_those_of_a_loop() -> None:
    mixer: LRU = mixer_of(LRUConfig(state_size=5, expand=2))
    x_BTD = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    before_BN2 = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    y_BTD, state = mixer(x_BTD, StateSpaceState(before_BN2))

    eigenvalues_N = torch.exp(-mixer.nu_log.exp()) * torch.exp(1j * mixer.theta_log.exp())
    into_NI = mixer.gamma_log.exp()[:, None] * (mixer.B_re + 1j * mixer.B_im)
    out_IN = mixer.C_re + 1j * mixer.C_im
    u_BTI, h_BN = mixer.in_proj(x_BTD), torch.view_as_complex(before_BN2)
    y_TBI = []
    for u_BI in u_BTI.unbind(1):
        h_BN = h_BN @ torch.diag(eigenvalues_N) + (u_BI + 0j) @ into_NI.T
        y_TBI.append((h_BN @ out_IN.T).real + u_BI * mixer.D)
    expected_BTD = mixer.out_proj(torch.nn.functional.gelu(torch.stack(y_TBI, 1)))
    expected = [expected_BTD, torch.view_as_real(h_BN)]
    assert_same(mixer, [y_BTD, state.hidden_BX2], expected, [x_BTD, before_BN2])


@torch.no_grad()
def test_eigenvalues_start_on_the_ring() -> None:
    mixer: LRU = mixer_of(LRUConfig(state_size=4096, max_phase=math.pi / 10))
    radius_N = torch.exp(-mixer.nu_log.exp())
    assert 0.9 <= float(radius_N.min()) < 0.901
    assert 0.998 < float(radius_N.max()) <= 0.999
    # Uniform over the area of the ring.
    assert abs(float((radius_N**2).mean()) - (0.9**2 + 0.999**2) / 2) < 3e-3
    assert 0 <= float(mixer.theta_log.exp().min()) < float(mixer.theta_log.exp().max())
    assert 0.95 * math.pi / 10 < float(mixer.theta_log.exp().max()) <= math.pi / 10
    torch.testing.assert_close(mixer.gamma_log.exp(), torch.sqrt(1 - radius_N**2))
