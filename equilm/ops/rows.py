"""Rows of many buffers, copied at once: what it takes to keep the states of some rows of a batch.

Read `rows_triton.py` next.
"""

from collections.abc import Callable, Iterable

from torch import Tensor


def row_copier(pairs: Iterable[tuple[Tensor, Tensor]]) -> Callable[[Tensor], None]:
    """Return a function of rows_N (int64) that copies these rows of buffers into others, in place.

    Args:
        pairs: (into, from), (R, …) and (W, …) with any R and W; they stay where they are. A pair
            that shares its memory is left alone.

    On a GPU: one launch for all pairs that are contiguous and of one type, `rows_triton.py`.
    """
    apart = [(into, leaf) for into, leaf in pairs if into.data_ptr() != leaf.data_ptr()]
    alike = [pair for pair in apart if _is_plain(*pair)]
    others = [pair for pair in apart if not _is_plain(*pair)]
    launch: Callable[[Tensor], None] | None = None
    if alike:
        from equilm.ops.rows_triton import RowCopy

        launch = RowCopy(alike)

    def copy(rows_N: Tensor) -> None:
        if launch is not None:
            launch(rows_N)
        for into, leaf in others:
            into.index_copy_(0, rows_N, leaf.index_select(0, rows_N).to(into.dtype))

    return copy


def _is_plain(into: Tensor, leaf: Tensor) -> bool:
    size_bytes = leaf[0].numel() * leaf.itemsize
    return (
        into.is_cuda
        and into.dtype == leaf.dtype
        and into.is_contiguous()
        and leaf.is_contiguous()
        and size_bytes % 4 == 0
        and into.data_ptr() % 16 == leaf.data_ptr() % 16 == 0
    )
