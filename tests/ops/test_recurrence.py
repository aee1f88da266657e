"""The diagonal recurrence against its definition, with all gradients."""

import pytest
import torch
from torch import Tensor

from equilm.ops.recurrence import recurrence
from tests.tolerance import assert_close

LENGTHS = [1, 2, 5, 63, 64, 100, 257]


def make(tokens: int, dtype: torch.dtype, *, constant: bool = False) -> list[Tensor]:
    shape = (1, 1, 3, 2) if constant else (2, tokens, 3, 2)
    decay_BTX = torch.randn(shape, dtype=dtype)
    decay_BTX = decay_BTX / decay_BTX.abs().clamp(min=1.01)
    input_BTX = torch.randn(2, tokens, 3, 2, dtype=dtype)
    state_BX = torch.randn(2, 3, 2, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (decay_BTX, input_BTX, state_BX)]


def plain(decay_BTX: Tensor, input_BTX: Tensor, h_BX: Tensor) -> tuple[Tensor, Tensor]:
    h_TBX = []
    for t in range(input_BTX.shape[1]):
        h_BX = decay_BTX[:, min(t, decay_BTX.shape[1] - 1)] * h_BX + input_BTX[:, t]
        h_TBX.append(h_BX)
    return torch.stack(h_TBX, dim=1), h_BX


def same(got: Tensor, expected: Tensor) -> None:
    if got.is_complex():
        got, expected = torch.view_as_real(got), torch.view_as_real(expected)
    assert_close("scan", got, expected)


@pytest.mark.parametrize("constant", [False, True], ids=["selective", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_outputs_and_gradients_are_those_of_a_loop(
    tokens: int, dtype: torch.dtype, constant: bool
) -> None:
    inputs = make(tokens, dtype, constant=constant)
    got, want = recurrence(*inputs), plain(*inputs)
    weights = [torch.randn_like(out) for out in want]
    for one, other in zip(got, want, strict=True):
        same(one, other)
    gradients = [
        torch.autograd.grad(
            torch.stack(
                [(out * weight).sum().real for out, weight in zip(outs, weights, strict=True)]
            ).sum(),
            inputs,
        )
        for outs in (got, want)
    ]
    for one, other in zip(*gradients, strict=True):
        same(one, other)


def test_no_state_is_a_state_of_zeros() -> None:
    decay_BTX, input_BTX, state_BX = make(9, torch.complex128)
    got_BTX, _ = recurrence(decay_BTX, input_BTX)
    expected_BTX, _ = recurrence(decay_BTX, input_BTX, torch.zeros_like(state_BX))
    same(got_BTX, expected_BTX)


def test_decays_of_zero_and_one_do_no_harm() -> None:
    decay_BTX, input_BTX, state_BX = make(100, torch.float32)
    decay_BTX = decay_BTX.sign().clamp(min=0)
    got_BTX, _ = recurrence(decay_BTX, input_BTX, state_BX)
    same(got_BTX, plain(decay_BTX, input_BTX, state_BX)[0])


def test_the_gradient_has_a_gradient() -> None:
    assert torch.autograd.gradgradcheck(recurrence, make(7, torch.complex128), fast_mode=True)
