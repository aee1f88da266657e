"""The kernels around attention and the MLP's gate against their twins.

In Triton's interpreter on a CPU; on a GPU at the lengths and types that matter there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.ops.attend import attend
from equilm.ops.rotary import split_heads
from equilm.ops.swiglu import swiglu_linear
from tests.ops.test_kernels import DEVICE, TOLERANCE, TYPES, assert_same, draw, poisoned

pytest.importorskip("triton", reason="kernels need Triton")

__all__ = ["poisoned"]  # a fixture that every test here uses
THETA = 100.0
HALF = [torch.float32, torch.float16, *TYPES[1:]]
# Heads, heads of keys, width of a head: shared and not, a power of two and not.
SHAPES = [(4, 4, 8), (6, 2, 12), (2, 1, 96)]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def lengths(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def check_split(
    tokens: int, shape: tuple[int, int, int], before: bool, inject: bool, dtype: torch.dtype
) -> None:
    from equilm.ops.rotary_triton import SplitHeads

    heads, kv_heads, width = shape
    before_B = lengths(0, 4097) if before else None
    channels = (heads + 2 * kv_heads) * width

    def kernel(qkv: Tensor, inject: Tensor | None) -> Any:
        return SplitHeads.apply(qkv, inject, before_B, heads, kv_heads, THETA)

    def twin(qkv: Tensor, inject: Tensor | None) -> Any:
        before = 0 if before_B is None else before_B
        return split_heads(qkv, inject, before, heads=heads, kv_heads=kv_heads, theta=THETA)

    inputs = [draw(2, tokens, channels), draw(2, tokens, channels) if inject else None]
    assert_same(kernel, twin, inputs, dtype, half=(0, 1))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_split_heads(
    shape: tuple[int, int, int], before: bool, inject: bool, dtype: torch.dtype
) -> None:
    check_split(5, shape, before, inject, dtype)


def test_split_heads_of_slices() -> None:
    """A window's injection is a slice of the sequence's; gradients of heads come transposed."""
    from equilm.ops.rotary_triton import SplitHeads

    def sliced(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(qkv: Tensor, inject: Tensor) -> Any:
            parts = function(qkv[:, 1:, 8:], inject[:, 2:7])
            return tuple(part.transpose(1, 2).contiguous() for part in parts)

        return run

    def kernel(qkv: Tensor, inject: Tensor) -> Any:
        return SplitHeads.apply(qkv, inject, None, 2, 1, THETA)

    def twin(qkv: Tensor, inject: Tensor) -> Any:
        return split_heads(qkv, inject, heads=2, kv_heads=1, theta=THETA)

    inputs = [draw(2, 6, 40), draw(2, 9, 32)]
    assert_same(sliced(kernel), sliced(twin), inputs, torch.float32, half=(0, 1))


def test_frozen_inputs_have_no_gradient() -> None:
    from equilm.ops.rotary_triton import SplitHeads

    qkv, inject = draw(2, 5, 32).float().to(DEVICE), draw(2, 5, 32).float().to(DEVICE)
    query, *_ = SplitHeads.apply(qkv, inject.requires_grad_(), None, 2, 1, THETA)
    query.sum().backward()
    assert inject.grad is not None
    assert inject.grad[..., 16:].abs().max() == 0
    assert qkv.grad is None


def test_one_gradient_for_two_inputs_is_added_to_neither() -> None:
    """Projection and injection are given one tensor; what comes from elsewhere must not mix in."""
    from equilm.ops.rotary_triton import SplitHeads

    qkv, inject = (draw(2, 5, 32).float().to(DEVICE).requires_grad_() for _ in range(2))
    twice = inject * 1
    first = SplitHeads.apply(qkv * 1, twice, None, 2, 1, THETA)
    second = SplitHeads.apply(qkv * 1, twice, None, 2, 1, THETA)
    weights = [draw(*part.shape).float().to(DEVICE) for part in (*first, *second)]
    loss = sum(
        (part * weight).sum() for part, weight in zip((*first, *second), weights, strict=True)
    )
    loss.backward()
    assert qkv.grad is not None
    assert inject.grad is not None
    assert error(inject.grad, qkv.grad) < 1e-6


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_split_heads_into_a_cache(
    heads: int, kv_heads: int, width: int, inject: bool, dtype: torch.dtype
) -> None:
    from equilm.ops.rotary_triton import split_heads_into

    slots, channels = 9, (heads + 2 * kv_heads) * width
    qkv = draw(2, 3, channels).to(DEVICE, dtype)
    add = draw(2, 3, channels).to(DEVICE, dtype) if inject else None
    before_B = lengths(2, 7)  # the second row's last token lies past the end
    # Slots of a head together, as a fresh state has them, and heads of a slot together.
    key = torch.ones(2, kv_heads, slots, width, device=DEVICE).transpose(1, 2)
    value = torch.ones(2, slots, kv_heads, width, device=DEVICE)
    with torch.no_grad():
        query = split_heads_into(qkv, add, before_B, key, value, heads, THETA)
        expected = split_heads(
            qkv.cpu().double(),
            None if add is None else add.cpu().double(),
            before_B.cpu(),
            heads=heads,
            kv_heads=kv_heads,
            theta=THETA,
            cache=(torch.ones(key.shape), torch.ones(value.shape)),
        )
    assert error(query.cpu(), expected[0]) < TOLERANCE[dtype]
    for got, want in zip((key.cpu(), value.cpu()), expected[1:], strict=True):
        assert error(got[:, :-1], want[:, :-1]) < TOLERANCE[torch.float32]
        assert got.isfinite().all()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tokens", [1, 3, 37])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_attend_over_a_cache(
    heads: int, kv_heads: int, width: int, tokens: int, dtype: torch.dtype
) -> None:
    from equilm.ops.attend_triton import attend_cached

    slots = 140
    before_B = lengths(0, 70, slots - tokens)
    query = draw(3, tokens, heads, width).to(DEVICE, dtype)
    key = draw(3, kv_heads, slots, width).to(DEVICE, dtype).transpose(1, 2)
    value = draw(3, slots, kv_heads, width).to(DEVICE, dtype)
    expected = attend(
        query.cpu().double(), key.cpu().double(), value.cpu().double(), before_B.cpu()
    )
    for row, length in enumerate((before_B + tokens).tolist()):
        key[row, length:], value[row, length:] = torch.nan, torch.nan
    assert error(attend_cached(query, key, value, before_B).cpu(), expected) < TOLERANCE[dtype]
    # The cache may be kept in another type than the queries.
    got = attend_cached(query, key.float(), value.float(), before_B)
    assert error(got.cpu(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (3, 12), (5, 1030)])
def test_swiglu(rows: int, hidden: int, dtype: torch.dtype) -> None:
    from equilm.ops.swiglu_triton import SwigluLinear

    inputs = [draw(rows, 1, 2 * hidden), draw(6, hidden) / hidden**0.5]
    assert_same(SwigluLinear.apply, swiglu_linear, inputs, dtype, half=(0, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 63, 100, 257, 2048])
def test_at_size(tokens: int, dtype: torch.dtype) -> None:
    check_split(tokens, (12, 12, 64), False, True, dtype)
    check_split(tokens, (16, 16, 96), True, True, dtype)
    test_swiglu(tokens, 2048, dtype)
    test_attend_over_a_cache(12, 12, 64, min(tokens, 100), dtype)
