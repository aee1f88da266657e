"""What the launches of Triton kernels share. Read `scan_triton.py`, `conv_triton.py`."""

from collections.abc import Iterable


def alignment(strides: Iterable[int]) -> int:
    """Return 8 if it divides all strides, else 1.

    Strides are passed in units of it: told so, the compiler lets threads load 16 bytes at once.
    """
    return 8 if all(stride % 8 == 0 for stride in strides) else 1
