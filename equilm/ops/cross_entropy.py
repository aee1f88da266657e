"""Cross entropy of a linear head, by chunks of rows, so that logits are never whole.

Not here: what is asked of which token, a task's matter. Read `equilm/nn/model.py` next.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at a time: enough rows for fast products, which more would not make faster.
CHUNK_BYTES = {"cuda": 2**30, "cpu": 2**27}


class CrossEntropy(NamedTuple):
    """On the device: Σ loss of the targets asked in nats, how many are asked, and which are right.

    The loss is in float32 or wider, and alone has a gradient; the number is int64.
    """

    loss_sum: Tensor  # scalar
    num_targets: Tensor  # scalar
    right: Tensor  # bool, in the targets' shape; false where not asked

    @property
    def num_correct(self) -> Tensor:
        """How many are right, an int64 scalar."""
        return self.right.sum()


def linear_cross_entropy(
    z_RD: Tensor,
    head_VD: Tensor,
    targets_R: Tensor,
    *,
    vocab_size: int,
    ignore: int,
    smoothing: float = 0.0,
) -> CrossEntropy:
    """Σ_r logsumexp(W z_r) − (W z_r)[target_r] over the rows asked.

    Products are in the autocast type, or the head's without autocast, the softmax in float32 or
    wider. The gradients are linear in the one cotangent: they are made on the way, and scaled by it
    in the backward pass.

    Args:
        z_RD: (..., D) any float type.
        head_VD: (≥ V, D) W; what lies beyond `vocab_size` is padding and does not count.
        targets_R: (...) int64 in [0, V), or `ignore`.
        vocab_size: V.
        ignore: The target of a row that is not asked.
        smoothing: Share of each target that is spread over the vocabulary, in [0, 1): the gradient
            is that of the smoothed targets, the sum that of the plain ones.

    Returns:
        The sum, the number, and each row: right if its target is the first of the largest logits.

    Raises:
        ValueError: If the shapes do not belong together.

    Source: arXiv 2411.09009 and 2410.10989 on the same cost. On a GPU: `cross_entropy_triton.py`.
    """
    if z_RD.shape[:-1] != targets_R.shape:
        raise ValueError(
            f"targets: expected shape {tuple(z_RD.shape[:-1])}, got {tuple(targets_R.shape)}"
        )
    shape = targets_R.shape
    z_RD, targets_R = z_RD.flatten(0, -2), targets_R.flatten()
    num_targets = (targets_R != ignore).sum()
    if not z_RD.is_cuda and _num_chunks(len(z_RD), head_VD, head_VD.dtype) == 1:
        # Nothing to save, and recipes of small models were tuned on autograd's rounding.
        loss_sum, right_R = _at_once(z_RD, head_VD, targets_R, vocab_size, ignore)
    elif torch.is_grad_enabled() and (z_RD.requires_grad or head_VD.requires_grad):
        loss_sum, right_R = LinearCrossEntropy.apply(z_RD, head_VD, targets_R, vocab_size, ignore)
    else:
        loss_sum, right_R, _, _ = _walk(z_RD, head_VD, targets_R, vocab_size, ignore)
    if smoothing:
        extra = smoothing * _margin(z_RD, head_VD[:vocab_size], targets_R, ignore)
        loss_sum = loss_sum + (extra - extra.detach())
    return CrossEntropy(loss_sum, num_targets, right_R.view(shape))


class LinearCrossEntropy(torch.autograd.Function):
    """The loss and what is right of `linear_cross_entropy`, by chunks."""

    @staticmethod
    def forward(
        ctx: Any, z_RD: Tensor, head_VD: Tensor, targets_R: Tensor, vocab_size: int, ignore: int
    ) -> tuple[Tensor, Tensor]:
        loss_sum, right_R, dz_RD, dhead_VD = _walk(
            z_RD, head_VD, targets_R, vocab_size, ignore, needs=ctx.needs_input_grad[:2]
        )
        ctx.save_for_backward(dz_RD, dhead_VD)
        ctx.dtypes = z_RD.dtype, head_VD.dtype
        ctx.mark_non_differentiable(right_R)
        return loss_sum, right_R

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dloss: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # Out of place, for a graph that is kept may be walked again.
        dz_RD, dhead_VD = (
            None if part is None else part.to(dtype) * dloss
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return dz_RD, dhead_VD, None, None, None


def logits_to_gradient_(
    logits_RV: Tensor, targets_R: Tensor, *, vocab_size: int, ignore: int, overwrite: bool = True
) -> tuple[Tensor, Tensor]:
    """Overwrite logits with softmax(logits) − onehot(target), the gradient of each row's loss.

    Args:
        logits_RV: (R, ≥ V) any float type, contiguous; changed in place, rows not asked and padding
            to zero.
        targets_R: (R,) int64 in [0, V), or `ignore`.
        vocab_size: V.
        ignore: The target of a row that is not asked.
        overwrite: Whether the gradient is wanted; else the logits stay.

    Returns:
        Losses (R,) in nats, float32 or wider, and whether each row is right (R,), bool; 0 and false
        where not asked.
    """
    if logits_RV.is_cuda and logits_RV.dtype != torch.float64:
        from equilm.ops import cross_entropy_triton as kernels

        return kernels.logits_to_gradient_(
            logits_RV, targets_R, vocab_size=vocab_size, ignore=ignore, overwrite=overwrite
        )
    asked_R = targets_R != ignore
    index_R1 = targets_R.where(asked_R, 0)[:, None]
    wide_RV = logits_RV[:, :vocab_size].to(_widened(logits_RV.dtype))
    right_R = (wide_RV.argmax(-1) == targets_R) & asked_R
    log_p_RV = F.log_softmax(wide_RV, -1)
    losses_R = -log_p_RV.gather(1, index_R1)[:, 0].where(asked_R, 0)
    if overwrite:
        p_RV = log_p_RV.exp_()
        p_RV.scatter_add_(1, index_R1, p_RV.new_full((), -1.0).expand(index_R1.shape))
        logits_RV[:, :vocab_size] = p_RV.masked_fill_(~asked_R[:, None], 0)
        logits_RV[:, vocab_size:] = 0
    return losses_R, right_R


@torch.no_grad()
def _walk(
    z_RD: Tensor,
    head_VD: Tensor,
    targets_R: Tensor,
    vocab_size: int,
    ignore: int,
    needs: tuple[bool, bool] = (False, False),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the loss, what is right, and the gradients of z and of the head that are needed."""
    num_rows, head_rows, dtype = len(z_RD), len(head_VD), _product_type(head_VD)
    z_RD, head_VD = z_RD.to(dtype), head_VD.to(dtype)
    if head_VD.is_cuda:
        # Fast products want whole tiles; a ragged vocabulary costs several times as much.
        head_VD = F.pad(head_VD, (0, 0, 0, -head_rows % 64))
    dz_RD = torch.empty_like(z_RD) if needs[0] else None
    dhead_VD = torch.zeros_like(head_VD, dtype=_widened(dtype)) if needs[1] else None
    step = -(-num_rows // _num_chunks(num_rows, head_VD, dtype))
    logits_RV = z_RD.new_empty(step, len(head_VD))
    losses, rights = [], []
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        chunk_RV = logits_RV[: num_rows - start]
        torch.mm(z_RD[rows], head_VD.T, out=chunk_RV)
        losses_R, right_R = logits_to_gradient_(
            chunk_RV, targets_R[rows], vocab_size=vocab_size, ignore=ignore, overwrite=any(needs)
        )
        losses.append(losses_R)
        rights.append(right_R)
        if dz_RD is not None:
            torch.mm(chunk_RV, head_VD, out=dz_RD[rows])
        if dhead_VD is not None:
            _add_product(dhead_VD, chunk_RV.T, z_RD[rows])
    dhead_VD = None if dhead_VD is None else dhead_VD[:head_rows]
    return torch.cat(losses).sum(), torch.cat(rights), dz_RD, dhead_VD


def _at_once(
    z_RD: Tensor, head_VD: Tensor, targets_R: Tensor, vocab_size: int, ignore: int
) -> tuple[Tensor, Tensor]:
    logits_RV = F.linear(z_RD.to(head_VD.dtype), head_VD)[:, :vocab_size]
    logits_RV = logits_RV.to(_widened(logits_RV.dtype))
    losses_R = F.cross_entropy(logits_RV, targets_R, ignore_index=ignore, reduction="none")
    right_R = (logits_RV.argmax(-1) == targets_R) & (targets_R != ignore)
    return losses_R.sum(), right_R


def _margin(z_RD: Tensor, head_VD: Tensor, targets_R: Tensor, ignore: int) -> Tensor:
    """Σ over the rows asked of the target's logit less the mean of all logits.

    As many times this more than the plain loss is that of targets of which so much is spread.
    """
    asked_R = targets_R != ignore
    head_VD = head_VD.to(_widened(head_VD.dtype))
    ahead_RD = F.embedding(targets_R.where(asked_R, 0), head_VD) - head_VD.mean(0)
    return (z_RD * ahead_RD * asked_R[:, None]).sum()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b; in half types on a CPU, which has no such product, a b is rounded first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _num_chunks(num_rows: int, head_VD: Tensor, dtype: torch.dtype) -> int:
    size_bytes = num_rows * len(head_VD) * dtype.itemsize
    return max(1, -(-size_bytes // CHUNK_BYTES[head_VD.device.type]))


def _product_type(head_VD: Tensor) -> torch.dtype:
    device = head_VD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return head_VD.dtype


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
