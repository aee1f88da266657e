"""The two views of a diagonal state-space model, its discretisations, the long convolution."""

import pytest
import torch
from torch import Tensor

from equilm.ops.diagonal import bilinear, by_convolution, by_recurrence, zoh
from equilm.ops.fftconv import fft_conv
from tests.tolerance import assert_close

ROWS, CHANNELS, SIZE = 3, 4, 5


def make(tokens: int) -> list[Tensor]:
    complex_ = {"dtype": torch.complex128}
    rate_IN = torch.complex(-torch.rand(CHANNELS, SIZE), 3 * torch.randn(CHANNELS, SIZE))
    tensors = [
        torch.randn(ROWS, tokens, CHANNELS, dtype=torch.float64),
        0.1 * rate_IN.to(torch.complex128),
        torch.randn(CHANNELS, SIZE, **complex_),  # type: ignore[call-overload]
        torch.randn(CHANNELS, SIZE, **complex_),  # type: ignore[call-overload]
        torch.randn(ROWS, CHANNELS, SIZE, **complex_),  # type: ignore[call-overload]
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def outputs_and_gradients(
    u_BTI: Tensor, state: Tensor, inputs: list[Tensor], valid_B: Tensor | None
) -> list[Tensor]:
    counts = torch.full((ROWS,), u_BTI.shape[1]) if valid_B is None else valid_B
    u_BTI = u_BTI.where((torch.arange(u_BTI.shape[1]) < counts[:, None])[..., None], 0)
    generator = torch.Generator().manual_seed(1)
    outs = [u_BTI, real(state)]
    weights = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
    loss = torch.stack([(out * w).sum() for out, w in zip(outs, weights, strict=True)]).sum()
    return [*outs, *map(real, torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 31, 63, 100, 257])
def test_both_views_agree(tokens: int, ragged: bool) -> None:
    inputs = make(tokens)
    u_BTI, a_IN, b_IN, c_IN, h_BIN = inputs
    valid_B = torch.tensor([0, (tokens + 1) // 2, tokens]) if ragged else None
    results = [
        outputs_and_gradients(*view(u_BTI, a_IN, b_IN, c_IN, h_BIN, valid_B), inputs, valid_B)
        for view in (by_convolution, by_recurrence)
    ]
    for got, want in zip(*results, strict=True):
        assert_close("scan", got, want)


def test_the_recurrence_is_its_formula() -> None:
    u_BTI, log_decay_IN, b_IN, c_IN, h_BIN = make(7)
    y_BTI, last_BIN = by_recurrence(u_BTI, log_decay_IN, b_IN, c_IN, h_BIN)
    for t in range(7):
        h_BIN = log_decay_IN.exp() * h_BIN + b_IN * u_BTI[:, t, :, None]
        assert_close("scan", y_BTI[:, t], (c_IN * h_BIN).sum(-1).real)
    assert_close("scan", real(last_BIN), real(h_BIN))


def test_zoh_is_exact_for_inputs_that_are_held() -> None:
    rate, step = torch.tensor(-0.3 + 2j, dtype=torch.complex128), 0.4
    log_decay, gain = zoh(rate, torch.tensor(step, dtype=torch.float64))
    h, fine = torch.tensor(1.5 - 0.5j, dtype=torch.complex128), 20_000
    expected = h * log_decay.exp() + gain * 0.7
    for _ in range(fine):  # Heun's rule with steps so small that it is exact to 1e-9.
        slope = rate * h + 0.7
        h = h + step / fine * (slope + rate * (h + step / fine * slope) + 0.7) / 2
    torch.testing.assert_close(expected, h, atol=1e-8, rtol=0)


def test_bilinear_is_its_formula_and_agrees_with_zoh_for_small_steps() -> None:
    rate = torch.complex(-torch.rand(9), torch.randn(9)).to(torch.complex128)
    log_decay, gain = bilinear(rate, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(log_decay.exp(), (1 + rate / 4) / (1 - rate / 4))
    torch.testing.assert_close(gain, 0.5 / (1 - rate / 4))
    small = torch.tensor(1e-4, dtype=torch.float64)
    for got, want in zip(bilinear(rate, small), zoh(rate, small), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=0)


def test_a_small_step_loses_no_digits_in_float32() -> None:
    rate = torch.tensor([-0.5 + 3j])
    _, gain = zoh(rate, torch.tensor([1e-6]))
    _, exact = zoh(rate.to(torch.complex128), torch.tensor([1e-6]).double())
    assert float((gain - exact).abs() / exact.abs()) < 1e-6


@pytest.mark.parametrize("tokens", [1, 2, 63, 100])
def test_the_long_convolution_is_its_sum(tokens: int) -> None:
    u_BTI = torch.randn(2, tokens, 3, dtype=torch.float64)
    kernel_IT = torch.randn(3, tokens, dtype=torch.float64)
    expected_BTI = torch.zeros_like(u_BTI)
    for t in range(tokens):
        for s in range(t + 1):
            expected_BTI[:, t] += kernel_IT[:, t - s] * u_BTI[:, s]
    assert_close("scan", fft_conv(u_BTI, kernel_IT), expected_BTI)
