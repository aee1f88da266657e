"""The Triton kernel of a sweep's decisions; `judge.py` is its meaning and its twin.

Sixty operations on a few numbers an unknown, each a launch without it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # unknowns a program handles


@triton.jit
def _judge_kernel(
    new, before, through, tolerance, max_steps,
    status, steps, residual, age, best, mark, stalled, relax,
    status_out, steps_out, residual_out, age_out, best_out, mark_out, stalled_out, relax_out,
    better_out, moves_out, gave_up_out,
    count, factor, patience, least,
    IS_CHAIN: tl.constexpr,
    EACH: tl.constexpr,
    CYCLE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of BLOCK unknowns each; -1, 0, 1, 2 are open, converged, capped, cycling."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    was = tl.load(status + at, mask=mask, other=0)
    open_ = was == -1
    res = tl.where(
        open_, tl.load(new + at, mask=mask, other=0), tl.load(residual + at, mask=mask, other=0)
    )
    limit, most = tolerance, max_steps
    if EACH:
        limit = tl.load(tolerance + at, mask=mask, other=0)
        most = tl.load(max_steps + at, mask=mask, other=0)
    if IS_CHAIN:
        is_before = tl.load(before + at, mask=mask, other=0) != 0
        is_through = tl.load(through + at, mask=mask, other=0) != 0
    else:
        is_before = at >= 0
        is_through = (res <= limit) | (open_ == 0)
    now = tl.where(open_ & is_through, 0, was)
    front = open_ & is_before & (is_through == 0)
    years = tl.load(age + at, mask=mask, other=0) + (open_ & is_before).to(tl.int32)
    best_res = tl.load(best + at, mask=mask, other=0)
    better = front & (res < best_res)
    best_res = tl.where(better, res, best_res)
    bar = tl.load(mark + at, mask=mask, other=0)
    idle = tl.load(stalled + at, mask=mask, other=0)
    share = tl.load(relax + at, mask=mask, other=0)
    if CYCLE:
        fell = front & (res < factor * bar)
        idle = tl.where(fell, 0, idle + front.to(tl.int32))
        stuck = front & (idle >= patience)
        now = tl.where(stuck & (share <= least), 2, now)
        idle = tl.where(stuck, 0, idle)
        bar = tl.where(fell, res, bar)
        share = tl.where(stuck, share * 0.5, share)
    finite = tl.abs(res) < float("inf")
    late = front & (now == -1) & (years >= most)
    now = tl.where(late | (front & (finite == 0)), 1, now)
    gave_up = front & (now != -1)
    moves = finite & ((now == -1) | (late & better))
    tl.store(status_out + at, now.to(tl.int8), mask=mask)
    turns = tl.load(steps + at, mask=mask, other=0) + open_.to(tl.int32)
    tl.store(steps_out + at, turns, mask=mask)
    tl.store(residual_out + at, tl.where(gave_up, best_res, res), mask=mask)
    tl.store(age_out + at, years, mask=mask)
    tl.store(best_out + at, best_res, mask=mask)
    tl.store(mark_out + at, bar, mask=mask)
    tl.store(stalled_out + at, idle, mask=mask)
    tl.store(relax_out + at, share, mask=mask)
    tl.store(better_out + at, better.to(tl.uint8), mask=mask)
    tl.store(moves_out + at, moves.to(tl.uint8), mask=mask)
    tl.store(gave_up_out + at, gave_up.to(tl.uint8), mask=mask)


def judge(
    residual: Tensor,
    record: tuple[Tensor, ...],
    before: Tensor | None,
    through: Tensor | None,
    tolerance: float | Tensor,
    max_steps: int | Tensor,
    cycle: Any,
    *,
    inplace: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """`equilm.solve.judge.judge` on a GPU; `before` and `through` are those of a chain."""
    fields = [field.contiguous() for field in record]
    out = fields if inplace else [torch.empty_like(field) for field in fields]
    flags = torch.empty((3, *residual.shape), dtype=torch.uint8, device=residual.device)
    chain = [residual if one is None else one.view(torch.uint8) for one in (before, through)]
    count = residual.numel()
    _judge_kernel[(triton.cdiv(count, BLOCK),)](
        residual, *chain, tolerance, max_steps, *fields, *out, *flags, count,
        1.0 if cycle is None else cycle.factor,
        0 if cycle is None else cycle.patience,
        0.0 if cycle is None else 0.5**cycle.halvings,
        IS_CHAIN=before is not None,
        EACH=isinstance(tolerance, Tensor),
        CYCLE=cycle is not None,
        BLOCK=BLOCK,
    )  # fmt: skip
    better, moves, gave_up = flags.view(torch.bool)
    return out, better, moves, gave_up
