"""Triton kernels of what a sweep does to its unknowns; `move.py` is their meaning and their twin.

An unknown is N numbers; one pass reads z and F(z) for the residual, one more moves z. Without
them a dozen passes over z cost as much as the evaluation of a small F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # unknowns a program handles


@triton.jit
def _residual_kernel(fz, z, out, num_rows, num_columns, R: tl.constexpr, N: tl.constexpr):
    """‖F(z) − z‖ / ‖F(z)‖ of R unknowns."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    n = tl.arange(0, N)
    mask = (row < num_rows)[:, None] & (n < num_columns)[None, :]
    at = row[:, None] * num_columns + n[None, :]
    fz_RN = tl.load(fz + at, mask=mask, other=0.0).to(tl.float32)
    change_RN = fz_RN - tl.load(z + at, mask=mask, other=0.0)
    top_R = tl.sqrt(tl.sum(change_RN * change_RN, 1))
    bottom_R = tl.sqrt(tl.sum(fz_RN * fz_RN, 1))
    # NaN stays NaN here; a maximum would hide it.
    bottom_R = tl.where(bottom_R < 1.1754944e-38, 1.1754944e-38, bottom_R)
    tl.store(out + row, top_R / bottom_R, mask=row < num_rows)


@triton.jit
def _move_kernel(
    z,
    target,
    best,
    share,
    better,
    moves,
    gave_up,
    z_out,
    best_out,
    num_rows,
    num_columns,
    HAS_SHARE: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    """best ← z where better; z ← z + share (target − z) where it moves, best where it gave up."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    n = tl.arange(0, N)
    row_mask = row < num_rows
    mask = row_mask[:, None] & (n < num_columns)[None, :]
    at = row[:, None] * num_columns + n[None, :]
    better_R1 = tl.load(better + row, mask=row_mask, other=0)[:, None] != 0
    moves_R1 = tl.load(moves + row, mask=row_mask, other=0)[:, None] != 0
    gave_up_R1 = tl.load(gave_up + row, mask=row_mask, other=0)[:, None] != 0
    z_RN = tl.load(z + at, mask=mask, other=0.0)
    target_RN = tl.load(target + at, mask=mask & moves_R1, other=0.0).to(tl.float32)
    best_RN = tl.load(best + at, mask=mask & ~better_R1, other=0.0)
    best_RN = tl.where(better_R1, z_RN, best_RN)
    moved_RN = target_RN
    if HAS_SHARE:
        share_R1 = tl.load(share + row, mask=row_mask, other=0.0)[:, None]
        moved_RN = z_RN + share_R1 * (target_RN - z_RN)
    rest_RN = tl.where(gave_up_R1, best_RN, z_RN)
    tl.store(z_out + at, tl.where(moves_R1, moved_RN, rest_RN), mask=mask)
    tl.store(best_out + at, best_RN, mask=mask)


def residual(fz: Tensor, z: Tensor) -> Tensor:
    """`equilm.solve.move.relative_residual` of (..., N) float32 z on a GPU."""
    fz, z = fz.contiguous(), z.contiguous()
    columns = z.shape[-1]
    rows = z.numel() // columns
    out = torch.empty(z.shape[:-1], device=z.device)
    _residual_kernel[(triton.cdiv(rows, ROWS),)](
        fz, z, out, rows, columns, R=ROWS, N=triton.next_power_of_2(columns)
    )
    return out


def move(
    z: Tensor,
    best: Tensor,
    target: Tensor,
    share: Tensor | None,
    better: Tensor,
    moves: Tensor,
    gave_up: Tensor,
    *,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """`equilm.solve.move.moved` of (..., N) float32 z on a GPU."""
    z, best, target = z.contiguous(), best.contiguous(), target.contiguous()
    flags = [flag.contiguous().view(torch.uint8) for flag in (better, moves, gave_up)]
    columns = z.shape[-1]
    rows = z.numel() // columns
    z_out, best_out = (z, best) if inplace else (torch.empty_like(z), torch.empty_like(best))
    _move_kernel[(triton.cdiv(rows, ROWS),)](
        z,
        target,
        best,
        z if share is None else share.contiguous(),
        *flags,
        z_out,
        best_out,
        rows,
        columns,
        HAS_SHARE=share is not None,
        R=ROWS,
        N=triton.next_power_of_2(columns),
    )
    return z_out, best_out
