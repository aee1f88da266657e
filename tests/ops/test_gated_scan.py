"""The operation between Mamba2's projections: its kernels against the composition of the parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.ops.gated_scan import Weights, gated_scan
from tests.ops.test_kernels import DEVICE, assert_same, draw, poisoned

__all__ = ["poisoned"]  # a fixture that every test here uses

NAMES = ("proj", "inject", *Weights._fields, "window", "scan")


def inputs_of(
    tokens: int,
    *,
    rows: int = 2,
    heads: int = 2,
    width: int = 16,
    groups: int = 1,
    state: int = 16,
    taps: int = 4,
) -> dict[str, Tensor | None]:
    """Draw the arguments by name."""
    inner = heads * width
    channels = inner + 2 * groups * state
    size = inner + channels + heads
    return {
        "proj": draw(rows, tokens, size),
        "inject": draw(rows, tokens, size),
        "taps_CW": draw(channels, taps),
        "taps_bias_C": draw(channels),
        "dt_bias_H": draw(heads) - 2,
        "a_log_H": 0.5 * draw(heads),
        "skip_H": draw(heads),
        "norm_I": draw(inner),
        "window": draw(rows, taps - 1, channels),
        "scan": draw(rows, heads, width, state),
    }


def twin(groups: int, valid: Tensor | None) -> Callable[..., Any]:
    def run(proj: Tensor, inject: Tensor | None, *rest: Any) -> Any:
        weights, states = Weights(*rest[:6]), rest[6:]
        return gated_scan(proj, inject, weights, *states, groups=groups, valid_B=valid)

    return run


def kernel(groups: int, valid: Tensor | None) -> Callable[..., Any]:
    from equilm.ops.gated_scan_triton import GatedScan

    return lambda *args: GatedScan.apply(*args, groups, 1e-5, valid, None, None, None)


def check(
    inputs: dict[str, Tensor | None],
    dtype: torch.dtype = torch.float32,
    groups: int = 1,
    valid: Tensor | None = None,
    outputs: slice = slice(None),
) -> None:
    """Compare the outputs chosen and all gradients that they have."""
    valid = None if valid is None else valid.to(DEVICE)

    def chosen(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*args)[outputs]

    functions = chosen(kernel(groups, valid)), chosen(twin(groups, valid))
    assert_same(*functions, [inputs[name] for name in NAMES], dtype, half=(0, 1, 2))


@pytest.mark.parametrize(("tokens", "dtype"), [(35, torch.float32), (9, torch.float16)])
def test_everything_given(tokens: int, dtype: torch.dtype) -> None:
    check(inputs_of(tokens, rows=1), dtype)


def test_nothing_given() -> None:
    inputs: dict[str, Tensor | None] = {**inputs_of(9, heads=1)}
    check({**inputs, "inject": None, "window": None, "scan": None})


def test_the_outputs_alone() -> None:
    """As in training: the last states get no cotangent."""
    check(inputs_of(5, rows=1), outputs=slice(1))


def test_fewer_tokens_than_taps() -> None:
    check(inputs_of(2, rows=1))


def test_odd_sizes() -> None:
    check(inputs_of(9, heads=4, width=12, groups=2, state=10, taps=3), groups=2)


@pytest.mark.parametrize("given", [False, True])
def test_rows_of_different_lengths(given: bool) -> None:
    inputs = inputs_of(5, rows=3, heads=1)
    if not given:
        inputs = {**inputs, "window": None, "scan": None}
    check(inputs, valid=torch.tensor([0, 2, 5]))


def test_slices_of_a_longer_sequence() -> None:
    """What an equilibrium passes on when it solves in windows."""
    long = inputs_of(20)
    inputs = [long[name] for name in NAMES]

    def cut(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda proj, inject, *rest: function(proj[:, 3:12], inject[:, 5:14], *rest)

    assert_same(cut(kernel(1, None)), cut(twin(1, None)), inputs, torch.float32, half=(0, 1))


def test_small_steps_keep_their_digits() -> None:
    """softplus(−8) = 3e-4, where a logarithm of 1 + e would lose four digits of seven."""
    from equilm.ops.step_triton import Inputs, step_sizes

    x = torch.linspace(-12, 30, 64).view(1, 32, 2).to(DEVICE)
    zeros = torch.zeros(2, device=DEVICE)
    dt, rate = step_sizes(Inputs(x, None, zeros, zeros + 0.5, None))
    expected = torch.nn.functional.softplus(x.double(), threshold=100)
    assert ((dt - expected) / expected).abs().max() < 1e-6
    torch.testing.assert_close(rate, -torch.exp(zeros + 0.5))


def test_one_injection_for_many_layers() -> None:
    """Each backward pass returns one tensor twice; sums of it must leave the other one alone."""
    inputs: dict[str, Tensor] = {k: v for k, v in inputs_of(5, rows=1).items() if v is not None}
    results = []
    for function, dtype in ((kernel(1, None), torch.float32), (twin(1, None), torch.float64)):
        proj, inject, *rest = (inputs[name].to(DEVICE, dtype).requires_grad_() for name in NAMES)
        first = proj * 1.0
        y = function(first, inject, *rest)[0]
        second = torch.nn.functional.pad(y, (0, proj.shape[2] - y.shape[2]))
        y = function(second, inject, *rest)[0]
        again = function(proj, inject, *rest)[0]
        results.append(
            torch.autograd.grad((y * y).sum() + again.sum(), [first, proj, second, inject])
        )
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() / expected.norm() < 2e-5


def test_a_second_derivative_is_refused() -> None:
    """The twin has one; the kernels must not pass zero off as theirs."""
    inputs: dict[str, Tensor] = {k: v for k, v in inputs_of(2, rows=1).items() if v is not None}
    args = [inputs[name].to(DEVICE, torch.float32).requires_grad_() for name in NAMES]
    loss = kernel(1, None)(*args)[0].square().sum()
    (dproj,) = torch.autograd.grad(loss, args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dproj.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [2, 63, 100, 257, 2048])
def test_at_size(tokens: int, dtype: torch.dtype) -> None:
    check(inputs_of(tokens, heads=4, width=64, state=128), dtype)


@pytest.mark.gpu
def test_padded_rows_at_size() -> None:
    inputs = inputs_of(300, rows=3, heads=8, width=64, groups=2, state=64)
    check(inputs, torch.bfloat16, groups=2, valid=torch.tensor([0, 130, 300]))
