import math

import pytest
import torch
from torch import Tensor

from equilm.ops.rotary import rotary, split_heads
from tests.tolerance import assert_close

ROWS, TOKENS, HEADS, KV_HEADS, WIDTH, THETA = 2, 7, 4, 2, 6, 100.0
CHANNELS = (HEADS + 2 * KV_HEADS) * WIDTH


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def split(
    qkv_BTE: Tensor,
    inject_BTE: Tensor | None = None,
    before: Tensor | int = 0,
    cache: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return split_heads(
        qkv_BTE,
        inject_BTE,
        before,
        heads=HEADS,
        kv_heads=KV_HEADS,
        theta=THETA,
        cache=cache,
    )


def test_rotary_is_its_formula() -> None:
    x_BTHP, before_B = draw(ROWS, TOKENS, HEADS, WIDTH), torch.tensor([5, 1000])
    got_BTHP = rotary(x_BTHP, before_B, theta=THETA)
    half = WIDTH // 2
    for row, token, pair in torch.cartesian_prod(*map(torch.arange, (ROWS, TOKENS, half))).tolist():
        angle = (int(before_B[row]) + token) * THETA ** (-2 * pair / WIDTH)
        first_H, second_H = x_BTHP[row, token, :, pair], x_BTHP[row, token, :, pair + half]
        turned_H = first_H * math.cos(angle) - second_H * math.sin(angle)
        assert_close("attend", got_BTHP[row, token, :, pair], turned_H)
        turned_H = first_H * math.sin(angle) + second_H * math.cos(angle)
        assert_close("attend", got_BTHP[row, token, :, pair + half], turned_H)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = draw(ROWS, TOKENS, HEADS, WIDTH), draw(ROWS, TOKENS, HEADS, WIDTH)
    products = []
    for before in (0, 17, torch.full((ROWS,), 4000)):
        turned = [rotary(part, before, theta=THETA) for part in (query, key)]
        products.append(torch.einsum("bthp,bshp->bhts", *turned))
    assert_close("attend", products[1], products[0])
    assert_close("attend", products[2], products[0])
    assert not torch.allclose(products[0], torch.einsum("bthp,bshp->bhts", query, key))


@pytest.mark.parametrize("position", [4097, 1_000_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_positions_keep_their_digits(dtype: torch.dtype, position: int) -> None:
    x_BTHP, before_B = torch.ones(1, 1, 1, 8, dtype=dtype), torch.tensor([position])
    wide_BTHP = rotary(x_BTHP.double(), before_B, theta=THETA)
    assert_close("elementwise", rotary(x_BTHP, before_B, theta=THETA), wide_BTHP)


def test_angles_first_made_in_inference_mode_serve_autograd_too() -> None:
    theta = 123.0  # of no other test
    with torch.inference_mode():
        rotary(draw(1, 3, 1, 4), theta=theta)
    x_BTHP = draw(1, 3, 1, 4).requires_grad_()
    rotary(x_BTHP, theta=theta).sum().backward()
    assert x_BTHP.grad is not None


def test_gradcheck_of_rotary() -> None:
    x_BTHP = draw(1, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotary(x, theta=THETA), (x_BTHP,))


@pytest.mark.parametrize("before", [0, 3, torch.tensor([3, 0])])
def test_the_projection_is_split_the_injection_added_and_queries_and_keys_rotated(
    before: Tensor | int,
) -> None:
    qkv_BTE, inject_BTE = draw(ROWS, TOKENS, CHANNELS), draw(ROWS, TOKENS, CHANNELS)
    sizes = [HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH]
    parts = [part.unflatten(-1, (-1, WIDTH)) for part in (qkv_BTE + inject_BTE).split(sizes, -1)]
    expected = [rotary(part, before, theta=THETA) for part in parts[:2]] + parts[2:]
    for got, want in zip(split(qkv_BTE, inject_BTE, before), expected, strict=True):
        assert_close("attend", got, want)
    without = split(qkv_BTE, None, before)
    for got, want in zip(without, split(qkv_BTE, 0 * inject_BTE, before), strict=True):
        assert_close("attend", got, want)


def test_half_precision_is_rounded_once() -> None:
    qkv_BTE, inject_BTE = (draw(ROWS, TOKENS, CHANNELS).bfloat16() for _ in range(2))
    got = split(qkv_BTE, inject_BTE)
    for part, want in zip(got, split(qkv_BTE.double(), inject_BTE.double()), strict=True):
        assert part.dtype == torch.bfloat16
        # One rounding is at most 2^-8 of a number; two come to more somewhere.
        assert ((part - want).abs() <= 2**-8 * want.abs() + 1e-6).all()


@pytest.mark.parametrize("before", [2, 10, torch.tensor([2, 10])])
@pytest.mark.parametrize("recording", [True, False])
def test_keys_and_values_go_into_their_slots(recording: bool, before: Tensor | int) -> None:
    qkv_BTE, slots = draw(ROWS, TOKENS, CHANNELS), 14
    cache = tuple(draw(ROWS, slots, KV_HEADS, WIDTH) for _ in range(2))
    old = [buffer.clone() for buffer in cache]
    with torch.set_grad_enabled(recording):
        _, *new = split(qkv_BTE, None, before, (cache[0], cache[1]))
    _, *expected = split(qkv_BTE, None, before)
    starts = [before] * ROWS if isinstance(before, int) else before.tolist()
    for got, given, was, want in zip(new, cache, old, expected, strict=True):
        assert (got is given) is not recording
        assert torch.equal(given, was) is recording
        for row, start in enumerate(starts):
            # From 10 on the tokens end past the last slot, which may take what is padding.
            inside = min(TOKENS, slots - 1 - start)
            assert torch.equal(got[row, start : start + inside], want[row, :inside])
            others = [s for s in range(slots - 1) if not start <= s < start + inside]
            assert torch.equal(got[row, others], was[row, others])


@pytest.mark.parametrize("before", [1, 3, torch.tensor([1])])
def test_gradients_pass_through_the_cache(before: Tensor | int) -> None:
    qkv_BTE = draw(1, 2, CHANNELS).requires_grad_()
    key, value = (draw(1, 4, KV_HEADS, WIDTH).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda qkv, key, value: split(qkv, None, before, (key, value)), (qkv_BTE, key, value)
    )
