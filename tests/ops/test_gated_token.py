"""One token by fewer passes is one token: outputs, states and all gradients, against the twin."""

import pytest
import torch
from torch import Tensor

from equilm.ops.gated_scan import Weights, gated_scan
from equilm.ops.gated_token import gated_token

HEADS, WIDTH, STATE, ROWS = 4, 6, 5, 3


def arguments(groups: int, taps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    inner = HEADS * WIDTH
    channels = inner + 2 * groups * STATE
    all_ = inner + channels + HEADS
    weights = [draw(channels, taps), draw(channels), *(draw(HEADS) for _ in range(3)), draw(inner)]
    window, scan = draw(ROWS, taps - 1, channels), draw(ROWS, HEADS, WIDTH, STATE)
    return [draw(ROWS, all_), draw(ROWS, all_), *weights, window, scan]


def one_token(groups: int, *given: Tensor) -> tuple[Tensor, ...]:
    proj, inject, *weights, window, scan = given
    found = gated_token(proj, inject, Weights(*weights), window, scan, groups=groups)
    return tuple(part for part in found if part is not None)


def twin(groups: int, *given: Tensor) -> tuple[Tensor, ...]:
    proj, inject, *weights, window, scan = given
    y, window, scan = gated_scan(
        proj[:, None], inject[:, None], Weights(*weights), window, scan, groups=groups
    )
    return y[:, 0], window, scan


@pytest.mark.parametrize(("groups", "taps"), [(1, 2), (2, 4), (4, 1)])
def test_results_and_gradients_are_the_twins(groups: int, taps: int) -> None:
    given = arguments(groups, taps)
    found, expected = one_token(groups, *given), twin(groups, *given)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in expected
    ]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)
    got_gradients = torch.autograd.grad(found, given, cotangents)
    for got, want in zip(
        got_gradients, torch.autograd.grad(expected, given, cotangents), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_a_state_that_is_not_wanted_is_not_made() -> None:
    proj, inject, *weights, window, scan = arguments(2, 3)
    whole = gated_token(proj, inject, Weights(*weights), window, scan, groups=2)
    y, *after = gated_token(proj, inject, Weights(*weights), window, scan, groups=2, advance=False)
    assert after == [None, None]
    torch.testing.assert_close(y, whole[0])


def test_without_injection() -> None:
    proj, inject, *weights, window, scan = arguments(1, 2)
    zero = torch.zeros_like(inject)
    found = gated_token(proj, None, Weights(*weights), window, scan, groups=1)[0]
    torch.testing.assert_close(found, one_token(1, proj, zero, *weights, window, scan)[0])
