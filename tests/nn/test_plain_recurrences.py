"""QRNN and the orthogonal network against loops written from their equations."""

import pytest
import torch
from torch import Tensor

from equilm.nn.orthogonal import Orthogonal, OrthogonalConfig, OrthogonalState
from equilm.nn.qrnn import QRNN, QRNNConfig, QRNNState
from tests.nn.build import WIDTH
from tests.nn.reference import assert_same, mixer_of


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("conv_width", [1, 2, 3])
def test_qrnn_is_its_equations(conv_width: int) -> None:
    mixer: QRNN = mixer_of(QRNNConfig(expand=2, conv_width=conv_width))
    x_BTD, window_BWD = inputs(2, 9, WIDTH), inputs(2, conv_width - 1, WIDTH)
    cell_BI = inputs(2, 2 * WIDTH)
    y_BTD, state = mixer(x_BTD, QRNNState(window_BWD, cell_BI))
    seen_BSD, c_BI, y_TBD = torch.cat([window_BWD, x_BTD], 1), cell_BI, []
    weight = mixer.in_proj.effective()
    for t in range(9):
        projected_BE = seen_BSD[:, t : t + conv_width].flatten(1) @ weight.T
        z_BI, f_BI, o_BI = projected_BE.chunk(3, dim=-1)
        c_BI = f_BI.sigmoid() * c_BI + (1 - f_BI.sigmoid()) * z_BI.tanh()
        y_TBD.append(mixer.out_proj(o_BI.sigmoid() * c_BI))
    expected = [torch.stack(y_TBD, 1), c_BI, seen_BSD[:, 9:].sum()]
    got = [y_BTD, state.cell_BI, state.window_BWD.sum()]
    leaves = [x_BTD, cell_BI] + ([window_BWD] if conv_width > 1 else [])
    assert_same(mixer, got, expected, leaves)


def test_the_orthogonal_network_is_its_equations() -> None:
    mixer: Orthogonal = mixer_of(OrthogonalConfig())
    with torch.no_grad():
        mixer.skew.add_(0.3 * torch.randn_like(mixer.skew))
        mixer.bias.uniform_(-0.3, 0.3)
    x_BTD, h_BI, y_TBD = inputs(2, 9, WIDTH), inputs(2, WIDTH), []
    leaves = [x_BTD, h_BI]
    y_BTD, state = mixer(x_BTD, OrthogonalState(h_BI))
    rotation_II = torch.linalg.matrix_exp(mixer.skew - mixer.skew.T)
    for t in range(9):
        v_BI = h_BI @ rotation_II.T + mixer.in_proj(x_BTD[:, t])
        h_BI = torch.where(v_BI > 0, 1, -1) * (v_BI.abs() + mixer.bias).clamp(min=0)
        y_TBD.append(mixer.out_proj(h_BI))
    assert_same(mixer, [y_BTD, state.hidden_BI], [torch.stack(y_TBD, 1), h_BI], leaves)


@torch.no_grad()
def test_a_state_is_turned_but_not_stretched() -> None:
    mixer: Orthogonal = mixer_of(OrthogonalConfig(expand=3))
    mixer.skew.add_(torch.randn_like(mixer.skew))
    rotation_II = mixer.rotation()
    eye_II = torch.eye(3 * WIDTH, dtype=torch.float64)
    torch.testing.assert_close(rotation_II @ rotation_II.T, eye_II, atol=1e-12, rtol=0)
    assert float(torch.linalg.det(rotation_II)) > 0
    before = OrthogonalState(torch.randn(2, 3 * WIDTH, dtype=torch.float64))
    _, after = mixer(torch.zeros(2, 500, WIDTH, dtype=torch.float64), before)
    torch.testing.assert_close(after.hidden_BI.norm(dim=1), before.hidden_BI.norm(dim=1))
