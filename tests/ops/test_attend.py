import math

import pytest
import torch
from torch import Tensor

from equilm.ops.attend import attend, rotary
from tests.tolerance import assert_close

ROWS, TOKENS, HEADS, WIDTH, THETA = 2, 7, 4, 6, 100.0


def make(kv_heads: int, slots: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(ROWS, TOKENS, HEADS, WIDTH, dtype=torch.float64),
        torch.randn(ROWS, slots, kv_heads, WIDTH, dtype=torch.float64),
        torch.randn(ROWS, slots, kv_heads, WIDTH, dtype=torch.float64),
    )


def softmax_by_hand(query: Tensor, key: Tensor, value: Tensor, position_BT: Tensor) -> Tensor:
    heads_per_key = query.shape[2] // key.shape[2]
    out = torch.zeros_like(query)
    for row, token, head in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        seen = slice(0, int(position_BT[row, token]) + 1)
        keys, values = (part[row, seen, head // heads_per_key] for part in (key, value))
        scores = torch.exp(keys @ query[row, token, head] / math.sqrt(WIDTH))
        out[row, token, head] = (scores / scores.sum()) @ values
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_is_softmax_over_the_slots_seen(kv_heads: int) -> None:
    query, key, value = make(kv_heads)
    position_BT = torch.arange(TOKENS).expand(ROWS, TOKENS)
    expected = softmax_by_hand(query, key, value, position_BT)
    assert_close("attend", attend(query, key, value), expected)
    assert_close("attend", attend(query, key, value, position_BT), expected)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_of_different_lengths_in_a_buffer(kv_heads: int) -> None:
    query, key, value = make(kv_heads, slots=12)
    position_BT = torch.tensor([[3], [0]]) + torch.arange(TOKENS)
    expected = softmax_by_hand(query, key, value, position_BT)
    assert_close("attend", attend(query, key, value, position_BT), expected)


def test_slots_not_seen_do_not_matter() -> None:
    query, key, value = make(2, slots=12)
    position_BT = torch.tensor([[3], [0]]) + torch.arange(TOKENS)
    expected = attend(query, key, value, position_BT)
    for row, last in enumerate(position_BT.amax(1).tolist()):
        key[row, last + 1 :], value[row, last + 1 :] = 1e9, -1e9
    assert torch.equal(attend(query, key, value, position_BT), expected)


def test_rotary_is_its_formula() -> None:
    x_BTHP = torch.randn(ROWS, TOKENS, HEADS, WIDTH, dtype=torch.float64)
    position_BT = torch.tensor([[5], [1000]]) + torch.arange(TOKENS)
    got_BTHP = rotary(x_BTHP, position_BT, theta=THETA)
    half = WIDTH // 2
    for row, token, pair in torch.cartesian_prod(*map(torch.arange, (ROWS, TOKENS, half))).tolist():
        angle = int(position_BT[row, token]) * THETA ** (-2 * pair / WIDTH)
        first_H, second_H = x_BTHP[row, token, :, pair], x_BTHP[row, token, :, pair + half]
        turned_H = first_H * math.cos(angle) - second_H * math.sin(angle)
        assert_close("attend", got_BTHP[row, token, :, pair], turned_H)
        turned_H = first_H * math.sin(angle) + second_H * math.cos(angle)
        assert_close("attend", got_BTHP[row, token, :, pair + half], turned_H)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key, _ = make(HEADS)
    products = []
    for start in (0, 17, 4000):
        position_BT = start + torch.arange(TOKENS)[None]
        turned = [rotary(part, position_BT, theta=THETA) for part in (query, key)]
        products.append(torch.einsum("bthp,bshp->bhts", *turned))
    assert_close("attend", products[1], products[0])
    assert_close("attend", products[2], products[0])
    assert not torch.allclose(products[0], torch.einsum("bthp,bshp->bhts", query, key))


def test_far_positions_keep_their_digits_in_half_precision() -> None:
    x_BTHP, position_BT = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), torch.tensor([[4097]])
    wide_BTHP = rotary(x_BTHP.double(), position_BT, theta=THETA)
    assert_close("elementwise", rotary(x_BTHP, position_BT, theta=THETA), wide_BTHP)


@pytest.mark.parametrize("cached", [True, False])
def test_gradcheck(cached: bool) -> None:
    query, key, value = (part.requires_grad_() for part in make(2, slots=9 if cached else TOKENS))
    position_BT = torch.tensor([[2], [0]]) + torch.arange(TOKENS) if cached else None
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, position_BT), (query, key, value)
    )


def test_gradcheck_of_rotary() -> None:
    x_BTHP = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    position_BT = torch.arange(3)[None]
    assert torch.autograd.gradcheck(lambda x: rotary(x, position_BT, theta=THETA), (x_BTHP,))
