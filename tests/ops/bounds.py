"""Every address that a kernel touches in Triton's interpreter, checked against its tensor.

The interpreter reads and writes wherever a pointer leads; a GPU does so too, until a page is not
there. Here each tensor given to a kernel begins at an address that stands for it alone, so that
whatever leaves it, for another tensor or for a gap between its rows, is seen. Pointers that a
kernel makes of numbers are true ones and are not checked.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

FIRST = 1 << 62  # true addresses are less
SPACE = 1 << 40  # bytes between the addresses that stand for two tensors


class _Known(NamedTuple):
    """A tensor given to a kernel."""

    address: int  # the true one, of its first element
    item: int  # bytes
    shape: tuple[int, ...]
    present: np.ndarray[Any, Any]  # whether the element that far behind the first is one of its own


def check_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loads and stores outside a kernel's tensors raise IndexError; without Triton, nothing."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    known: list[_Known] = []
    convert = interpreter._implicit_cvt

    def named(arg: Any) -> Any:
        converted = convert(arg)
        if isinstance(arg, Tensor):
            known.append(_describe(arg))
            converted.handle.data = np.array([FIRST + len(known) * SPACE], dtype=np.uint64)
        return converted

    monkeypatch.setattr(interpreter, "_implicit_cvt", named)
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(self, _true(known, pointers, mask, "load"), mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(self, _true(known, pointers, mask, "store"), value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)


def _describe(tensor: Tensor) -> _Known:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in pairs) if tensor.numel() else 0
    present = torch.zeros(extent, dtype=torch.bool)
    present.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return _Known(tensor.data_ptr(), tensor.element_size(), tuple(tensor.shape), present.numpy())


def _true(known: list[_Known], pointers: Any, mask: Any, verb: str) -> Any:
    """Return the true pointers; raise where one that the mask lets through is outside."""
    addresses = pointers.data.astype(np.int64)
    places = (addresses - FIRST + SPACE // 2) // SPACE
    true = addresses.copy()
    for place in np.unique(places[mask.data & (places > 0)]):
        tensor, of_place = known[place - 1], mask.data & (places == place)
        elements, rest = np.divmod(addresses[of_place] - FIRST - place * SPACE, tensor.item)
        inside = (elements >= 0) & (elements < len(tensor.present)) & (rest == 0)
        inside[inside] = tensor.present[elements[inside]]
        if not inside.all():
            outside = int(elements[~inside][0])
            raise IndexError(f"{verb}: expected an element of {tensor.shape}, got {outside}")
        true[of_place] = tensor.address + elements * tensor.item
    return type(pointers)(true.astype(np.uint64), pointers.dtype)
