"""Rows of many buffers copied at once, by the kernel and by its twin."""

import pytest
import torch

from equilm.ops.rows import row_copier

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 3), (1,), (5, 700, 3), (20_000,)]


def pairs(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = [(torch.randn(7, *shape), torch.randn(4, *shape)) for shape in SHAPES]
    made.append((torch.arange(7), torch.arange(4) + 100))
    return [(into.to(device), leaf.to(device)) for into, leaf in made]


def check(copied: list[tuple[torch.Tensor, torch.Tensor]], before: list[torch.Tensor]) -> None:
    for (into, leaf), old in zip(copied, before, strict=True):
        want = old.clone()
        want[[2, 0]] = leaf[[2, 0]]
        assert torch.equal(into, want)


def test_rows_are_copied_and_others_left() -> None:
    made = pairs(DEVICE)
    shared = torch.randn(7, 2, device=DEVICE)
    before = [into.clone() for into, _ in made]
    copy = row_copier([*made, (shared, shared[:4])])
    for _ in range(2):
        copy(torch.tensor([2, 0, 2], device=DEVICE))
    check(made, before)
    # Another type is cast.
    into = torch.zeros(3, 2, dtype=torch.float64, device=DEVICE)
    row_copier([(into, torch.ones(3, 2, device=DEVICE))])(torch.tensor([1], device=DEVICE))
    assert into.sum(1).tolist() == [0, 2, 0]


def test_kernel() -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    from equilm.ops.rows_triton import RowCopy

    made = pairs(DEVICE)
    before = [into.clone() for into, _ in made]
    RowCopy(made)(torch.tensor([2, 0, 0, 0], device=DEVICE))
    check(made, before)
