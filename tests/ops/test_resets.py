"""Operations on rows of several documents against each document apart, with all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.ops import scan as scans
from equilm.ops.attend import attend
from equilm.ops.conv import conv_silu
from equilm.ops.rotary import rotary
from equilm.ops.scan import CHUNK, ssd, ssd_sequential
from tests.tolerance import assert_close

Scan = Callable[..., Any]
chunked: Scan = scans.ssd_chunked
SCANS: list[Scan] = [ssd, ssd_sequential, chunked]
ROWS = 2
SIZES = [(1, 30, 2, 67), (64, 1, 35), (100,), (7,)]


def starts_of(sizes: tuple[int, ...]) -> Tensor:
    edges = [sum(sizes[:n]) for n in range(len(sizes))]
    starts_BT = torch.zeros(ROWS, sum(sizes), dtype=torch.bool)
    starts_BT[:, edges[1:]] = True
    return starts_BT


def scan_inputs(tokens: int, dtype: torch.dtype, rate: float = 1.0) -> list[Tensor]:
    heads, width, size = 4, 3, 5
    return [
        part.requires_grad_()
        for part in (
            torch.randn(ROWS, tokens, heads, width, dtype=dtype),
            rate * torch.rand(ROWS, tokens, heads, dtype=dtype),
            -torch.rand(heads, dtype=dtype) - 0.1,
            torch.randn(ROWS, tokens, 2, size, dtype=dtype),
            torch.randn(ROWS, tokens, 2, size, dtype=dtype),
            torch.randn(heads, dtype=dtype),
            torch.randn(ROWS, heads, width, size, dtype=dtype),
        )
    ]


def scan_apart(inputs: list[Tensor], sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x, dt, a, b, c, skip, state = inputs
    pieces = zip(*(part.split(sizes, dim=1) for part in (x, dt, b, c)), strict=True)
    out = []
    for number, (x_n, dt_n, b_n, c_n) in enumerate(pieces):
        before = state if number == 0 else None
        y, after = ssd_sequential(x_n, dt_n, a, b_n, c_n, skip, before)
        out.append(y)
    return torch.cat(out, dim=1), after


def assert_same(
    operation: str,
    got: tuple[Tensor, ...],
    want: tuple[Tensor, ...],
    inputs: list[Tensor],
    dtype: torch.dtype = torch.float64,
) -> None:
    cotangents = [torch.randn_like(part) for part in want]
    gradients: list[tuple[Tensor | None, ...]] = [
        torch.autograd.grad(list(parts), inputs, cotangents, allow_unused=True)
        for parts in (got, want)
    ]
    for one, other in zip((*got, *gradients[0]), (*want, *gradients[1]), strict=True):
        # A gradient that is missing is one of zeros.
        if other is None:
            assert one is None or not one.any()
        else:
            assert one is not None
            assert_close(operation, one, other, dtype=dtype)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scan", SCANS)
def test_scan(scan: Scan, sizes: tuple[int, ...]) -> None:
    inputs = scan_inputs(sum(sizes), torch.float64)
    want = scan_apart(inputs, sizes)
    assert_same("scan", scan(*inputs, starts_BT=starts_of(sizes)), want, inputs)


@pytest.mark.parametrize("rate", [1e-6, 300.0])
def test_scan_with_decays_near_one_and_near_zero(rate: float) -> None:
    sizes = (CHUNK - 1, 2, CHUNK + 5)
    inputs = scan_inputs(sum(sizes), torch.float32, rate)
    want = scan_apart(inputs, sizes)
    assert_same("scan", chunked(*inputs, starts_BT=starts_of(sizes)), want, inputs, torch.float32)


@pytest.mark.parametrize("width", [1, 2, 4, 9])
@pytest.mark.parametrize("sizes", SIZES)
def test_convolution(sizes: tuple[int, ...], width: int) -> None:
    x, weight, bias, window, add = inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in (
            (ROWS, sum(sizes), 5),
            (5, width),
            (5,),
            (ROWS, width - 1, 5),
            (ROWS, sum(sizes), 5),
        )
    ]
    out = []
    for number, (x_n, add_n) in enumerate(
        zip(x.split(sizes, dim=1), add.split(sizes, dim=1), strict=True)
    ):
        y, after = conv_silu(x_n, weight, bias, None if number else window, add_BTC=add_n)
        out.append(y)
    starts = starts_of(sizes)
    got = conv_silu(x, weight, bias, window, add_BTC=add, starts_BT=starts)
    assert_same("conv", got, (torch.cat(out, dim=1), after), inputs)


@pytest.mark.parametrize("sizes", SIZES)
def test_attention_with_positions(sizes: tuple[int, ...]) -> None:
    tokens = sum(sizes)
    query, key, value = inputs = [
        torch.randn(ROWS, tokens, heads, 6, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    slot_BT = torch.arange(tokens).expand(ROWS, -1)
    first_BT = slot_BT.where(starts_of(sizes), 0).cummax(1).values
    position_BT = slot_BT - first_BT
    got = attend(
        rotary(query, theta=100.0, position_BT=position_BT),
        rotary(key, theta=100.0, position_BT=position_BT),
        value,
        first_BT=first_BT,
    )
    parts = zip(*(part.split(sizes, dim=1) for part in inputs), strict=True)
    want = [attend(rotary(q, theta=100.0), rotary(k, theta=100.0), v) for q, k, v in parts]
    assert_same("attend", (got,), (torch.cat(want, dim=1),), inputs)


def test_what_another_document_holds_does_not_matter() -> None:
    sizes = (20, 10)
    starts, (x, dt, a, b, c, skip, state) = starts_of(sizes), scan_inputs(30, torch.float64)
    with torch.no_grad():
        want, _ = ssd(x, dt, a, b, c, skip, state, starts)
        x[:, :20], state[:] = 1e200, -1e200
        got, _ = ssd(x, dt, a, b, c, skip, state, starts)
    assert torch.equal(got[:, 20:], want[:, 20:])
