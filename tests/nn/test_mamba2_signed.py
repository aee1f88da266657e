"""Mamba2 with eigenvalues in [−1, 1] keeps the laws; its state learns to count modulo two."""

import torch

from equilm.nn.mamba2 import Mamba2, Mamba2Config
from equilm.ops.signed_scan import ssd_signed
from tests.nn import test_laws
from tests.nn.build import WIDTH
from tests.nn.reference import mixer_of


def test_laws_hold() -> None:
    config = Mamba2Config(expand=2, head_width=4, state_size=3, groups=2, eigenvalues="signed")
    mixer: Mamba2 = mixer_of(config)
    with torch.no_grad():
        mixer.dt_bias.fill_(0.5)  # Steps long enough for decays below zero.
    x_BTD = torch.randn(3, test_laws.TOKENS, WIDTH, dtype=torch.float64)
    inject_BTE = torch.randn(3, test_laws.TOKENS, mixer.inject_width, dtype=torch.float64)
    test_laws.test_causal(mixer, x_BTD, inject_BTE, "mixer")
    test_laws.test_chunk(mixer, x_BTD, inject_BTE, [3, 1], "mixer")
    test_laws.test_value(mixer, x_BTD, inject_BTE, "mixer")
    test_laws.test_row(mixer, x_BTD, inject_BTE, "mixer")
    test_laws.test_empty(mixer, x_BTD, inject_BTE, "mixer")
    test_laws.test_valid(mixer, x_BTD.clone(), inject_BTE, "filled", "mixer")
    positive = mixer_of(Mamba2Config(expand=2, head_width=4, state_size=3, groups=2))
    positive.load_state_dict(mixer.state_dict())
    assert (positive(x_BTD)[0] - mixer(x_BTD)[0]).abs().max() > 1e-3


def test_one_head_learns_parity() -> None:
    """The step alone is learnt: by gradients, the decay of a one goes to −1."""
    bits_BT = torch.randint(2, (16, 20))
    target_BT = 1 - 2 * (bits_BT.cumsum(1) % 2).float()
    raw = torch.tensor([1.0], requires_grad=True)
    zeros_BTGN, one = torch.zeros(16, 20, 1, 1), torch.ones(16, 1, 1, 1)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(150):
        dt_BTH = torch.nn.functional.softplus(raw) * bits_BT[..., None]
        y_BTHP, _ = ssd_signed(
            zeros_BTGN, dt_BTH, -one[0, 0, 0], zeros_BTGN, zeros_BTGN + 1, 0 * one[0, 0, 0], one
        )
        loss = (y_BTHP[..., 0, 0] - target_BT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (y_BTHP[..., 0, 0].sign() == target_BT).all()
