import itertools
import re

import pytest
import torch

from equilm.tasks.groups import MAX_ORDER, Monoid, canonical_name, direct_product, parse

GROUPS = ["Z2", "Z7", "S3", "S5", "A4", "A5", "Z3xS3"]
MONOIDS = ["M4", "S3xM4", "A5xM4"]


def is_invertible(monoid: Monoid) -> torch.Tensor:
    unit = monoid.table_QQ == monoid.identity
    return unit.any(1) & unit.any(0)


@pytest.mark.parametrize("name", GROUPS + MONOIDS)
def test_product_is_associative_with_an_identity(name: str) -> None:
    monoid = parse(name)
    table, everything = monoid.table_QQ, torch.arange(monoid.order)
    assert table.dtype == torch.int64
    assert torch.equal(table[monoid.identity], everything)
    assert torch.equal(table[:, monoid.identity], everything)
    for a in range(monoid.order):
        assert torch.equal(table[table[a]], table[a][table]), f"({a}·b)·c differs from {a}·(b·c)"


@pytest.mark.parametrize("name", GROUPS)
def test_every_element_of_a_group_has_an_inverse(name: str) -> None:
    assert is_invertible(parse(name)).all()


@pytest.mark.parametrize(("name", "units"), [("M4", 1), ("S3xM4", 6), ("A5xM4", 60)])
def test_only_the_group_part_of_a_monoid_is_invertible(name: str, units: int) -> None:
    assert int(is_invertible(parse(name)).sum()) == units


@pytest.mark.parametrize(
    ("name", "order"),
    [("S5", 120), ("A5", 60), ("Z7", 7), ("A5xM4", 240), ("S5xM4", 480), ("A7", 2520), ("S6", 720)],
)
def test_order(name: str, order: int) -> None:
    monoid = parse(name)
    assert monoid.order == len(set(monoid.elements)) == order
    assert monoid.table_QQ.shape == (order, order)


@pytest.mark.parametrize("name", ["S3", "S4", "A5"])
def test_permutations_compose_left_first(name: str) -> None:
    monoid = parse(name)
    for a, b in itertools.product(range(monoid.order), repeat=2):
        first, then = monoid.elements[a], monoid.elements[b]
        composed = "".join(then[int(image)] for image in first)
        assert monoid.elements[monoid.table_QQ[a, b]] == composed


def test_alternating_group_is_the_even_half() -> None:
    assert parse("A3").elements == ("012", "120", "201")


def test_relations_of_the_four_element_monoid() -> None:
    m4 = parse("M4")
    _, a, b, zero = range(4)
    table = m4.table_QQ.tolist()
    assert m4.elements == ("1", "a", "b", "0")
    assert [table[b][b], table[b][a], table[a][a], table[a][b]] == [b, a, zero, zero]
    assert all(table[zero][x] == table[x][zero] == zero for x in range(4))


def test_four_element_monoid_is_aperiodic() -> None:
    table = parse("M4").table_QQ
    squares = table.diagonal()
    assert torch.equal(table[squares, torch.arange(4)], squares)


def test_direct_product_multiplies_each_factor() -> None:
    left, right = parse("S3"), parse("M4")
    both = direct_product(left, right)
    for a, c, b, d in itertools.product(range(6), range(4), range(6), range(4)):
        expected = left.table_QQ[a, b] * 4 + right.table_QQ[c, d]
        assert both.table_QQ[a * 4 + c, b * 4 + d] == expected
    assert both.elements[5 * 4 + 2] == f"{left.elements[5]},{right.elements[2]}"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("S5", "S5"), ("S_5", "S5"), ("A5*M4", "A5xM4"), ("Z_2 x S_3 x M_4", "Z2xS3xM4")],
)
def test_spellings_of_a_name(name: str, canonical: str) -> None:
    assert canonical_name(name) == parse(name).name == canonical


@pytest.mark.parametrize(
    ("name", "got", "nearest"),
    [
        ("s5", "s5", "S5"),
        ("M5", "M5", "M4"),
        ("A5xm4", "m4", "M4"),
        ("Z07", "Z07", "Z7"),
        ("S55", "S55", "S5"),
        ("S_7", "S_7", "S6"),
    ],
)
def test_unknown_group_names_the_nearest(name: str, got: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"got '{got}' in '{name}', nearest is '{nearest}'"):
        parse(name)


@pytest.mark.parametrize("name", ["", "x", "S", "S5x", "Z1", "S1", "A2", "S7", "A8", "Z4097", "5"])
def test_name_outside_the_families_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"group: expected .* in {re.escape(repr(name))}"):
        canonical_name(name)


def test_product_too_large_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_ORDER} elements, got 'S5xS5' with 14400"):
        parse("S5xS5")
