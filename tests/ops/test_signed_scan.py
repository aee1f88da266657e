"""Mamba2's scan with negative decays against a loop, with all gradients; and that it can count."""

import pytest
import torch
from torch import Tensor

from equilm.ops.signed_scan import ssd_signed
from tests.tolerance import assert_close


def make(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """All arguments of two groups of two heads; a share of the steps is zero."""
    dt_BTH = 2 * torch.rand(2, tokens, 4, dtype=dtype)
    return [
        torch.randn(2, tokens, 4, 3, dtype=dtype),
        dt_BTH.where(dt_BTH > 0.1, 0),
        -torch.rand(4, dtype=dtype) - 0.1,
        torch.randn(2, tokens, 2, 5, dtype=dtype),
        torch.randn(2, tokens, 2, 5, dtype=dtype),
        torch.randn(4, dtype=dtype),
        torch.randn(2, 4, 3, 5, dtype=dtype),
    ]


def plain(x, dt, a, b, c, skip, state):  # type: ignore[no-untyped-def]
    b, c = (part.repeat_interleave(2, dim=2) for part in (b, c))
    y, decays = [], 2 * torch.exp(dt * a) - 1
    for t in range(x.shape[1]):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        state = decays[:, t, :, None, None] * state + added
        y.append((state @ c[:, t, :, :, None])[..., 0] + skip[:, None] * x[:, t])
    return torch.stack(y, 1), state


def results(scan, inputs: list[Tensor]) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = scan(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
    loss = torch.stack([(o * w).sum() for o, w in zip(outs, weights, strict=True)]).sum()
    return [*outs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 100, 257])
def test_outputs_and_gradients_are_those_of_a_loop(tokens: int) -> None:
    inputs = make(tokens, torch.float64)
    decays_BTH = 2 * torch.exp(inputs[1] * inputs[2]) - 1
    assert tokens == 1 or decays_BTH.min() < 0 < decays_BTH.max()
    for got, want in zip(results(ssd_signed, inputs), results(plain, inputs), strict=True):
        assert_close("gradient", got, want)


def test_float32_agrees_with_float64() -> None:
    inputs = make(100, torch.float32)
    exact = plain(*(tensor.double() for tensor in inputs))
    for got, want in zip(ssd_signed(*inputs), exact, strict=True):
        assert_close("scan", got, want.float())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("tokens", [1, 100])
def test_half_precision_beside_steps_in_float32(device: str, tokens: int) -> None:
    halves = (0, 3, 4)  # x, b and c, as autocast has them
    inputs = [
        tensor.to(device, torch.bfloat16 if place in halves else torch.float32)
        for place, tensor in enumerate(make(tokens, torch.float32))
    ]
    exact = plain(*(tensor.double() for tensor in inputs))
    y_BTHP, state_BHPN = ssd_signed(*inputs)
    assert (y_BTHP.dtype, state_BHPN.dtype) == (torch.bfloat16, torch.float32)
    for got, want in zip((y_BTHP, state_BHPN), exact, strict=True):
        assert (got - want).norm() < 1e-2 * want.norm()


def test_a_decay_of_zero_forgets_and_its_gradient_is_finite() -> None:
    inputs = make(5, torch.float64)
    inputs[1][:, 3] = torch.log(torch.tensor(2.0).double()) / -inputs[2]
    got, want = results(ssd_signed, inputs), results(plain, inputs)
    for one, other in zip(got[:2], want[:2], strict=True):
        assert_close("scan", one, other)
    assert all(tensor.isfinite().all() for tensor in got)


def test_a_state_of_one_number_is_the_parity_of_its_inputs() -> None:
    bits_BT = torch.randint(2, (3, 200))
    # Steps so long that a one turns the sign; b = 0 adds nothing to the state.
    dt_BTH = 50.0 * bits_BT[..., None].double()
    zeros_BTGN = torch.zeros(3, 200, 1, 1, dtype=torch.float64)
    one = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    y_BTHP, _ = ssd_signed(
        zeros_BTGN, dt_BTH, -one[0, 0, 0], zeros_BTGN, zeros_BTGN + 1, 0 * one[0, 0, 0], one
    )
    assert_close("scan", y_BTHP[..., 0, 0], 1 - 2 * (bits_BT.cumsum(1) % 2).double())
