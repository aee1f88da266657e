"""Triton kernel of the cross entropy; `cross_entropy.py` is its meaning and its twin.

One program a row, which it reads for the loss and again for the gradient. A thread keeps maximum
and sum of its own columns, so that threads meet once a row and not once a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a row held at a time, of them by one thread (one load), and blocks on their way at a time.
BLOCK_BYTES, THREAD_BYTES, STAGES = 8192, 16, 3

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # not -inf: two of them have no difference


@triton.jit
def _load(logits, at_QU, vocab_size, num_columns):
    # The load's mask is of whole vectors; one that ended inside would load number by number.
    value_QU = tl.load(logits + at_QU, mask=at_QU < num_columns, other=0.0).to(tl.float32)
    return tl.where(at_QU < vocab_size, value_QU, float("-inf"))


@triton.jit
def _fold(value_QU, top_Q, total_Q, since_Q, block):
    """The maximum so far, Σ exp(value − maximum), and the block it was first seen in."""
    new_Q = tl.maximum(top_Q, tl.max(value_QU, 1))
    shift_Q = new_Q * LOG2E
    # Not as below: fused, the rounding of LOWEST's product would be left, and is huge.
    total_Q = total_Q * tl.exp2((top_Q - new_Q) * LOG2E)
    total_Q += tl.sum(tl.exp2(value_QU * LOG2E - shift_Q[:, None]), 1)
    return new_Q, total_Q, tl.where(new_Q > top_Q, block, since_Q)


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
    U: tl.constexpr,
    STAGES: tl.constexpr,
):
    """V columns are a block, held as Q runs of U."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_columns
    target = tl.load(targets + row)
    asked = target != ignore
    # A target that is no token makes the loss NaN, and reads nothing.
    inside = (target >= 0) & (target < vocab_size)
    answer = tl.load(logits + target, mask=inside, other=float("nan")).to(tl.float32)
    v_QU = tl.arange(0, V // U)[:, None] * U + tl.arange(0, U)[None, :]
    num_full, num_blocks = vocab_size // V, tl.cdiv(num_columns, V)
    top_Q = tl.full((V // U,), LOWEST, tl.float32)
    total_Q, since_Q = tl.zeros((V // U,), tl.float32), tl.zeros((V // U,), tl.int32)
    for block in tl.range(0, num_full, num_stages=STAGES):
        value_QU = tl.load(logits + block * V + v_QU).to(tl.float32)
        top_Q, total_Q, since_Q = _fold(value_QU, top_Q, total_Q, since_Q, block)
    for block in range(num_full, num_blocks):
        value_QU = _load(logits, block * V + v_QU, vocab_size, num_columns)
        top_Q, total_Q, since_Q = _fold(value_QU, top_Q, total_Q, since_Q, block)
    top = tl.max(top_Q, 0)
    total = tl.sum(total_Q * tl.exp2((top_Q - top) * LOG2E), 0)
    tl.store(losses + row, tl.where(asked, tl.log(total) + (top - answer), 0.0))
    at_QU = tl.min(tl.where(top_Q == top, since_Q, num_blocks), 0) * V + v_QU
    is_top_QU = _load(logits, at_QU, vocab_size, num_columns) == top
    first = tl.min(tl.min(tl.where(is_top_QU, at_QU, vocab_size), 1), 0)
    tl.store(rights + row, asked & (first == target))
    if OVERWRITE:
        shift = tl.where(asked, top * LOG2E + tl.log2(total), float("inf"))
        # From the end: what was read last is still in the cache.
        for block in range(num_full, num_blocks):
            at_QU = block * V + v_QU
            p_QU = tl.exp2(_load(logits, at_QU, vocab_size, num_columns) * LOG2E - shift)
            tl.store(logits + at_QU, p_QU.to(logits.dtype.element_ty), mask=at_QU < num_columns)
        for turn in tl.range(0, num_full, num_stages=STAGES):
            at_QU = (num_full - 1 - turn) * V + v_QU
            p_QU = tl.exp2(tl.load(logits + at_QU).to(tl.float32) * LOG2E - shift)
            tl.store(logits + at_QU, p_QU.to(logits.dtype.element_ty))
        # The target's place was written by another thread than the one that writes it now.
        tl.debug_barrier()
        answer = tl.exp2(answer * LOG2E - shift) - 1
        tl.store(logits + target, answer.to(logits.dtype.element_ty), mask=asked & inside)


def logits_to_gradient_(
    logits_RV: Tensor, targets_R: Tensor, *, vocab_size: int, ignore: int, overwrite: bool = True
) -> tuple[Tensor, Tensor]:
    """See `cross_entropy.logits_to_gradient_`; the loss of a target that is no token is NaN."""
    num_rows, num_columns = logits_RV.shape
    losses_R = torch.empty(num_rows, device=logits_RV.device)
    right_R = torch.empty(num_rows, dtype=torch.bool, device=logits_RV.device)
    block_bytes = triton.next_power_of_2(num_columns * logits_RV.itemsize)
    block_bytes = max(THREAD_BYTES, min(BLOCK_BYTES, block_bytes))
    _kernel[(num_rows,)](
        logits_RV,
        targets_R,
        losses_R,
        right_R,
        vocab_size,
        num_columns,
        ignore,
        OVERWRITE=overwrite,
        V=block_bytes // logits_RV.itemsize,
        U=THREAD_BYTES // logits_RV.itemsize,
        STAGES=STAGES,
        num_warps=max(1, block_bytes // (32 * THREAD_BYTES)),
    )
    return losses_R, right_R
