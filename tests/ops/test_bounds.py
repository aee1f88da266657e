"""The check of a kernel's addresses: what leaves a tensor is seen, what a mask forbids is not."""

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="kernels need Triton")
from triton import language as tl  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of Triton's interpreter")


@triton.jit
def copy(into, source, offset, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, WIDTH)
    tl.store(into + at, tl.load(source + offset + at, mask=at < size), mask=at < size)


def copied(source: Tensor, *, offset: int = 0, size: int = 4, room: int = 4) -> list[float]:
    into = torch.zeros(room)
    copy[(1,)](into, source, offset, size, WIDTH=4)
    return into.tolist()


def test_inside() -> None:
    assert copied(torch.arange(8.0)[2:], offset=1) == [3, 4, 5, 6]
    assert copied(torch.arange(3.0), size=3) == [0, 1, 2, 0]


@pytest.mark.parametrize(("offset", "got"), [(-1, "-1"), (3, "6")])
def test_a_load_outside_of_a_slice(offset: int, got: str) -> None:
    with pytest.raises(Exception, match=f"load: expected an element of \\(6,\\), got {got}"):
        copied(torch.arange(10.0)[2:8], offset=offset)


def test_a_load_between_rows() -> None:
    with pytest.raises(Exception, match="load: expected an element of"):
        copied(torch.zeros(2, 4)[:, :3])


def test_a_store_outside() -> None:
    with pytest.raises(Exception, match="store: expected an element of"):
        copied(torch.zeros(4), room=3)
