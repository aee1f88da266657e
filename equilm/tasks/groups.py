"""Finite groups and monoids as Cayley tables: Z_n, S_n, A_n, M4 and their direct products.

Tables are computed from a name each time, cached nowhere. A product a·b means "a, then b"
everywhere in the package: a prefix product grows on the right, p_j = p_{j-1}·x_j, and a
permutation is applied after those on its left. Not here: sequences (`word_problem.py`, next).
Q counts the elements of a monoid.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from equilm.config import nearest

# S6, A7 and A5xM4xM4xM4 fit; the table of S7 would take 203 MB.
MAX_ORDER = 4096


@dataclass(frozen=True, eq=False)
class Monoid:
    """A finite set with an associative product and an identity.

    Args:
        name: canonical, such as "S5" or "A5xM4".
        table_QQ: int64, table_QQ[a, b] = a·b.
        identity: index of the element that changes nothing.
        elements: how each element is written.
    """

    name: str
    table_QQ: Tensor
    identity: int
    elements: tuple[str, ...]

    @property
    def order(self) -> int:
        """Number of elements Q."""
        return len(self.elements)


@dataclass(frozen=True)
class _Family:
    sizes: range
    order: Callable[[int], int]
    build: Callable[[int], Monoid]


def canonical_name(name: str) -> str:
    """Rewrite "S_5 * M4" as "S5xM4", or refuse it, without building a table.

    Args:
        name: Z_n (n in 2..4096), S_n (2..6), A_n (3..7), M4, with or without the underscore, or
            a direct product of them joined by "x" or "*"; at most MAX_ORDER elements in all.

    Returns:
        The canonical name.

    Raises:
        ValueError: no such group, with the nearest valid name; or one that is too large.
    """
    factors = [_parse_factor(part, name) for part in _split(name)]
    order = math.prod(_FAMILIES[family].order(size) for family, size in factors)
    if order > MAX_ORDER:
        raise ValueError(f"group: expected at most {MAX_ORDER} elements, got {name!r} with {order}")
    return "x".join(f"{family}{size}" for family, size in factors)


def parse(name: str) -> Monoid:
    """Build the monoid of a name.

    Args:
        name: as in `canonical_name`.

    Returns:
        The Monoid; its identity is element 0, and in a product the last factor varies fastest.

    Raises:
        ValueError: as in `canonical_name`.
    """
    factors = [_parse_factor(part, name) for part in _split(canonical_name(name))]
    return reduce(direct_product, (_FAMILIES[family].build(size) for family, size in factors))


def direct_product(left: Monoid, right: Monoid) -> Monoid:
    """(a, c)·(b, d) = (a·b, c·d), with (a, c) at index a·|right| + c.

    Args:
        left: the factor that varies slowest.
        right: the factor that varies fastest.

    Returns:
        Their direct product.
    """
    table_QQ = (
        left.table_QQ[:, None, :, None] * right.order + right.table_QQ[None, :, None, :]
    ).reshape(left.order * right.order, -1)
    return Monoid(
        name=f"{left.name}x{right.name}",
        table_QQ=table_QQ,
        identity=left.identity * right.order + right.identity,
        elements=tuple(f"{a},{c}" for a, c in itertools.product(left.elements, right.elements)),
    )


def _cyclic(size: int) -> Monoid:
    residues = torch.arange(size)
    table_QQ = (residues[:, None] + residues[None, :]) % size
    return Monoid(f"Z{size}", table_QQ, 0, tuple(map(str, range(size))))


def _symmetric(size: int) -> Monoid:
    return _permutations(f"S{size}", torch.tensor([*itertools.permutations(range(size))]))


def _alternating(size: int) -> Monoid:
    images_QN = torch.tensor([*itertools.permutations(range(size))])
    pairs = itertools.combinations(range(size), 2)
    inversions = sum((images_QN[:, i] > images_QN[:, j]).long() for i, j in pairs)
    return _permutations(f"A{size}", images_QN[inversions % 2 == 0])


def _permutations(name: str, images_QN: Tensor) -> Monoid:
    """Cayley table of a set of permutations, one image list a row, closed, identity first."""
    size = images_QN.shape[1]
    places = [size ** (size - 1 - point) for point in range(size)]
    codes = sum(images_QN[:, point] * place for point, place in enumerate(places))
    # a, then b: the point i goes to a[i], then to b[a[i]].
    code_QQ = sum(images_QN[:, images_QN[:, i]].T * place for i, place in enumerate(places))
    index_of_code = torch.zeros(size**size, dtype=torch.int64)
    index_of_code[codes] = torch.arange(len(codes))
    elements = tuple("".join(map(str, images)) for images in images_QN.tolist())
    return Monoid(name, index_of_code[code_QQ], 0, elements)


def _four_element_monoid(_size: int) -> Monoid:
    """⟨a, b | bb = b, ba = a, aa = ab = 0⟩: aperiodic, and 0, once reached, is never left.

    Source: the monoid that the public state-tracking generator of arXiv 2502.07827 multiplies
    its group by. (It is described there as telling words without "aa"; it also absorbs "ab".)
    """
    table_QQ = torch.tensor([[0, 1, 2, 3], [1, 3, 3, 3], [2, 1, 2, 3], [3, 3, 3, 3]])
    return Monoid("M4", table_QQ, 0, ("1", "a", "b", "0"))


_FAMILIES = {
    "Z": _Family(range(2, MAX_ORDER + 1), lambda size: size, _cyclic),
    "S": _Family(range(2, 7), math.factorial, _symmetric),
    "A": _Family(range(3, 8), lambda size: math.factorial(size) // 2, _alternating),
    "M": _Family(range(4, 5), lambda size: size, _four_element_monoid),
}


def _split(name: str) -> list[str]:
    return [part.strip() for part in re.split("[x*]", name)]


def _parse_factor(part: str, name: str) -> tuple[str, int]:
    match = re.fullmatch("([ZSAM])_?([1-9][0-9]{0,8})", part)
    if match and int(match[2]) in _FAMILIES[match[1]].sizes:
        return match[1], int(match[2])
    raise ValueError(
        "group: expected Z_n (n in 2..4096), S_n (2..6), A_n (3..7), M4 or a direct product such "
        f"as 'A5xM4'; got {part!r} in {name!r}, nearest is {_nearest_factor(part)!r}"
    )


def _nearest_factor(part: str) -> str:
    letter = part[:1].upper()
    families = [letter] if letter in _FAMILIES else list(_FAMILIES)
    names = [f"{family}{size}" for family in families for size in _FAMILIES[family].sizes[:12]]
    return nearest(part.replace("_", ""), names)
