"""Triton kernel of the cross entropy; `cross_entropy.py` is its meaning and its twin.

One program a row. It reads the row for its loss, then again for the gradient, from the end: what
was read last is still in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096  # of a row held at a time
PER_THREAD = 16


@triton.jit
def _kernel(
    logits,
    targets,
    losses,
    rights,
    vocab_size,
    num_columns,
    ignore,
    OVERWRITE: tl.constexpr,
    V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_columns
    target = tl.load(targets + row)
    asked = target != ignore
    # A target that is no token makes the loss NaN, and reads nothing.
    inside = (target >= 0) & (target < vocab_size)
    answer = tl.load(logits + target, mask=inside, other=float("nan")).to(tl.float32)
    v = tl.arange(0, V)
    top = tl.full((), float("-inf"), tl.float32)
    total_V, beaten_V = tl.zeros((V,), tl.float32), tl.zeros((V,), tl.int32)
    num_blocks = tl.cdiv(vocab_size, V)
    for block in range(num_blocks):
        at = block * V + v
        # The mask of a load is of whole vectors, or it would be made number by number.
        value_V = tl.load(logits + at, mask=at < num_columns, other=0.0).to(tl.float32)
        counts = at < vocab_size
        value_V = tl.where(counts, value_V, float("-inf"))
        new_top = tl.maximum(top, tl.max(value_V, 0))
        total_V = total_V * tl.exp(top - new_top) + tl.exp(value_V - new_top)
        top = new_top
        holds = (answer > value_V) | ((answer == value_V) & (at >= target))
        beaten_V |= tl.where(counts & ~holds, 1, 0)
    total = tl.sum(total_V, 0)
    loss = tl.log(total) + (top - answer)
    tl.store(losses + row, tl.where(asked, loss, 0.0))
    tl.store(rights + row, asked & (tl.max(beaten_V, 0) == 0))
    if OVERWRITE:
        scale = 1 / total
        num_blocks = tl.cdiv(num_columns, V)
        for turn in range(num_blocks):
            at = (num_blocks - 1 - turn) * V + v
            value_V = tl.load(logits + at, mask=at < num_columns, other=0.0).to(tl.float32)
            gradient_V = tl.exp(value_V - top) * scale - tl.where(at == target, 1.0, 0.0)
            gradient_V = tl.where(asked & (at < vocab_size), gradient_V, 0.0)
            gradient_V = gradient_V.to(logits.dtype.element_ty)
            tl.store(logits + at, gradient_V, mask=at < num_columns)


def logits_to_gradient_(
    logits_RV: Tensor, targets_R: Tensor, *, vocab_size: int, ignore: int, overwrite: bool = True
) -> tuple[Tensor, Tensor]:
    """See `cross_entropy.logits_to_gradient_`; a target that is no token gives NaN."""
    num_rows, num_columns = logits_RV.shape
    losses_R = torch.empty(num_rows, device=logits_RV.device)
    right_R = torch.empty(num_rows, dtype=torch.bool, device=logits_RV.device)
    columns = min(COLUMNS, triton.next_power_of_2(num_columns))
    _kernel[(num_rows,)](
        logits_RV,
        targets_R,
        losses_R,
        right_R,
        vocab_size,
        num_columns,
        ignore,
        OVERWRITE=overwrite,
        V=columns,
        num_warps=max(1, columns // (32 * PER_THREAD)),
    )
    return losses_R, right_R
