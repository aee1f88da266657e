"""The selective scan of S6 against a loop, real and complex, with all gradients."""

import pytest
import torch
from torch import Tensor

from equilm.ops.selective import selective_scan
from tests.tolerance import assert_close

NUMBERS = [torch.float32, torch.float64, torch.complex128]


def make(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """All arguments; a small share of the steps is zero."""
    rows, channels, size = 2, 5, 3
    real = torch.float64 if dtype == torch.complex128 else dtype
    dt_BTI = torch.rand(rows, tokens, channels, dtype=real)
    a_IN = -torch.rand(channels, size, dtype=real)
    if dtype.is_complex:
        a_IN = torch.complex(a_IN, 3 * torch.randn_like(a_IN))
    return [
        torch.randn(rows, tokens, channels, dtype=real),
        dt_BTI.where(dt_BTI > 0.1, 0),
        a_IN,
        torch.randn(rows, tokens, size, dtype=dtype),
        torch.randn(rows, tokens, size, dtype=dtype),
        torch.randn(channels, dtype=real),
        torch.randn(rows, channels, size, dtype=dtype),
    ]


def plain(x, dt, a, b, c, skip, h):  # type: ignore[no-untyped-def]
    y, factor = [], 2 if a.is_complex() else 1
    for t in range(x.shape[1]):
        added = (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        h = torch.exp(dt[:, t, :, None] * a) * h + added
        y.append(factor * (h * c[:, t, None]).sum(-1).real + skip * x[:, t])
    return torch.stack(y, 1), h


def results(scan, inputs: list[Tensor]) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = scan(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
    loss = torch.stack([(o * w).sum().real for o, w in zip(outs, weights, strict=True)]).sum()
    found = [*outs, *torch.autograd.grad(loss, leaves)]
    return [torch.view_as_real(t) if t.is_complex() else t for t in found]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 100, 257])
def test_outputs_and_gradients_are_those_of_a_loop(tokens: int, dtype: torch.dtype) -> None:
    inputs = make(tokens, dtype)
    for got, want in zip(results(selective_scan, inputs), results(plain, inputs), strict=True):
        assert_close("scan", got, want)


def test_no_state_is_a_state_of_zeros() -> None:
    inputs = make(70, torch.float64)
    zeros = selective_scan(*[*inputs[:6], torch.zeros_like(inputs[6])])
    for got, want in zip(selective_scan(*inputs[:6]), zeros, strict=True):
        assert_close("scan", got, want)
