"""The kernels of the selective scan against their twin: outputs, final states, all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.selective import selective_scan_chunked
from tests.ops.test_kernels import DEVICE, assert_same, draw, poisoned

__all__ = ["poisoned"]  # a fixture that every test here uses

HALF = (0, 3, 4)


def inputs_of(tokens: int, *, rows: int = 2, channels: int = 8, state: int = 3) -> list[Any]:
    """Draw x, dt before softplus, log(−a), b, c, skip and the first state."""
    return [
        draw(rows, tokens, channels),
        draw(rows, tokens, channels) - 1,
        0.5 * draw(channels, state),
        draw(rows, tokens, state),
        draw(rows, tokens, state),
        draw(channels),
        draw(rows, channels, state),
    ]


def stepped(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, dt: Tensor, a: Tensor, *rest: Tensor | None) -> Any:
        return function(x, F.softplus(dt), -a.exp(), *rest)

    return run


def check(inputs: list[Any], dtype: torch.dtype = torch.float32) -> None:
    from equilm.ops.selective_triton import SelectiveScan

    twin = stepped(selective_scan_chunked)
    assert_same(stepped(SelectiveScan.apply), twin, inputs, dtype, half=HALF)


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(1, torch.float32), (13, torch.float32), (8, torch.float16)]
)
def test_scan(tokens: int, dtype: torch.dtype) -> None:
    check(inputs_of(tokens), dtype)


def test_scan_of_odd_sizes_from_no_state() -> None:
    check([*inputs_of(5, rows=1, channels=70, state=5)[:6], None])


def test_scan_of_whole_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest of tokens, channels or numbers: no mask then; two segments, two spans."""
    from equilm.ops import selective_triton

    monkeypatch.setattr(selective_triton, "_segments", lambda inputs: 2)
    monkeypatch.setattr(selective_triton, "_spans", lambda inputs: 2)
    check(inputs_of(32, rows=1, channels=32, state=16))


@pytest.mark.parametrize("given", [False, True])
def test_segments_side_by_side(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them, the last one shorter."""
    from equilm.ops import selective_triton

    monkeypatch.setattr(selective_triton, "_segments", lambda inputs: 3)
    inputs = inputs_of(20, rows=1, state=2)
    check(inputs if given else [*inputs[:6], None])


def test_programs_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five chunks by programs of four, whose sums over tokens add up."""
    from equilm.ops import selective_triton

    monkeypatch.setattr(selective_triton, "_spans", lambda inputs: 2)
    check(inputs_of(20, rows=1, state=1))


def test_the_outputs_alone() -> None:
    """As in training: the last state gets no cotangent, and x is a slice of a wider tensor."""
    from equilm.ops.selective_triton import SelectiveScan

    def cut(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *rest: stepped(function)(x[..., 2:10], *rest)[0]

    inputs = inputs_of(5, rows=1, state=2)
    inputs[0] = draw(1, 5, 12)
    functions = cut(SelectiveScan.apply), cut(selective_scan_chunked)
    assert_same(*functions, inputs, torch.float32, half=HALF)


def test_a_second_derivative_is_refused() -> None:
    """The twin has one; the kernels must not pass zero off as theirs."""
    from equilm.ops.selective_triton import SelectiveScan

    args = [value.to(DEVICE, torch.float32).requires_grad_() for value in inputs_of(2, state=1)]
    loss = stepped(SelectiveScan.apply)(*args)[0].square().sum()
    (dx,) = torch.autograd.grad(loss, args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 63, 100, 257, 2048])
def test_scan_at_size(tokens: int, dtype: torch.dtype) -> None:
    check(inputs_of(tokens, channels=256, state=16), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "state"), [(100, 8), (128, 32), (96, 64), (33, 10)])
def test_scan_of_every_state_size(channels: int, state: int, dtype: torch.dtype) -> None:
    check(inputs_of(300, channels=channels, state=state), dtype)


@pytest.mark.gpu
def test_rows_that_fill_the_chip() -> None:
    """One segment then, and programs of many chunks."""
    check(inputs_of(130, rows=32, channels=1024, state=16), torch.bfloat16)
