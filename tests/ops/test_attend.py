import math

import pytest
import torch
from torch import Tensor

from equilm.ops.attend import attend
from tests.tolerance import assert_close

ROWS, TOKENS, HEADS, WIDTH = 2, 7, 4, 6


def make(kv_heads: int, slots: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(ROWS, TOKENS, HEADS, WIDTH, dtype=torch.float64),
        torch.randn(ROWS, slots, kv_heads, WIDTH, dtype=torch.float64),
        torch.randn(ROWS, slots, kv_heads, WIDTH, dtype=torch.float64),
    )


def softmax_by_hand(query: Tensor, key: Tensor, value: Tensor, before_B: Tensor) -> Tensor:
    position_BT = before_B[:, None] + torch.arange(TOKENS)
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
    before_B = torch.zeros(ROWS, dtype=torch.int64)
    expected = softmax_by_hand(query, key, value, before_B)
    assert_close("attend", attend(query, key, value), expected)
    assert_close("attend", attend(query, key, value, before_B), expected)


@pytest.mark.parametrize("tokens", [1, TOKENS])
@pytest.mark.parametrize("before", [0, 5, 9])
def test_rows_of_one_length_in_a_buffer(before: int, tokens: int) -> None:
    query, key, value = make(2, slots=12)
    before_B = torch.full((ROWS,), before)
    expected = attend(query[:, :tokens], key, value, before_B)
    assert_close("attend", attend(query[:, :tokens], key, value, before), expected)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_of_different_lengths_in_a_buffer(kv_heads: int) -> None:
    query, key, value = make(kv_heads, slots=12)
    before_B = torch.tensor([3, 0])
    expected = softmax_by_hand(query, key, value, before_B)
    assert_close("attend", attend(query, key, value, before_B), expected)


def test_slots_not_seen_do_not_matter() -> None:
    query, key, value = make(2, slots=12)
    before_B = torch.tensor([3, 0])
    expected = attend(query, key, value, before_B)
    for row, last in enumerate((before_B + TOKENS).tolist()):
        key[row, last:], value[row, last:] = 1e9, -1e9
    assert torch.equal(attend(query, key, value, before_B), expected)


@pytest.mark.parametrize("cached", [True, False])
def test_gradcheck(cached: bool) -> None:
    query, key, value = (part.requires_grad_() for part in make(2, slots=9 if cached else TOKENS))
    before = torch.tensor([2, 0]) if cached else 0
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, before), (query, key, value))
