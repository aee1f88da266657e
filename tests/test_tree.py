"""Verbs on trees of tensors."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from equilm import tree


class Pair(NamedTuple):
    first_BN: Tensor
    second_B: Tensor


def make(offset: float = 0.0) -> Any:
    base = torch.arange(12.0).view(4, 3) + offset
    return (Pair(base, base[:, 0] * 10), (None, base + 100), ())


def equal(one: Any, other: Any) -> bool:
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_map_keeps_the_shape_of_the_tree() -> None:
    got = tree.map_(torch.add, make(), make(0.5))
    assert isinstance(got[0], Pair)
    assert got[1][0] is None
    assert got[2] == ()
    assert torch.equal(got[0].first_BN, 2 * make()[0].first_BN + 0.5)
    assert torch.equal(got[1][1], 2 * make()[1][1] + 0.5)


def test_map_of_trees_that_differ_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        tree.map_(torch.add, make(), make()[:2])


def test_leaves_come_from_left_to_right() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    assert [id(leaf) for leaf in tree.leaves((a, (None, (b, a))))] == [id(a), id(b), id(a)]
    assert list(tree.leaves(None)) == []


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False] * 2)])
def test_take_and_put_are_inverse(rows: Tensor) -> None:
    values, into = tree.take(make(), rows), make(1000.0)
    assert [len(leaf) for leaf in tree.leaves(values)] == [2, 2, 2]
    written = tree.put(into, rows, values)
    assert equal(tree.take(written, rows), values)
    others = torch.tensor([1, 3])
    assert equal(tree.take(written, others), tree.take(make(1000.0), others))
    assert equal(into, make(1000.0)), "put changed its argument"


def test_select_chooses_row_by_row() -> None:
    mask_B = torch.tensor([True, False, False, True])
    got = tree.select(mask_B, make(), make(1000.0))
    assert equal(tree.take(got, mask_B), tree.take(make(), mask_B))
    assert equal(tree.take(got, ~mask_B), tree.take(make(1000.0), ~mask_B))


def test_select_does_not_copy_a_shared_buffer() -> None:
    shared, old, new = torch.randn(2, 3), torch.zeros(2), torch.ones(2)
    got = tree.select(torch.tensor([True, False]), (shared, new), (shared, old))
    assert got[0] is shared
    assert got[1].tolist() == [1, 0]


def test_overwrite_leaves_tensors_where_they_are() -> None:
    old, new = make(), make(1000.0)
    before = list(tree.leaves(old))
    shared = before[1]
    tree.overwrite((old[0][0], shared, None, old[1][1]), (new[0][0], shared, None, new[1][1]))
    assert all(one is other for one, other in zip(tree.leaves(old), before, strict=True))
    assert before[0].equal(new[0][0]) and before[2].equal(new[1][1])
    assert shared.equal(make()[0][1])


def test_detach_cuts_every_leaf() -> None:
    leaf = torch.ones(2, requires_grad=True)
    cut = tree.detach(Pair(2 * leaf, 3 * leaf))
    assert isinstance(cut, Pair)
    assert not any(part.requires_grad for part in cut)
