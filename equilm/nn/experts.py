"""A mixture of experts in the place of an MLP: a router sends each token to the best few.

    p = softmax(W_r a),   y = Σ_{e among the largest} p_e · MLP_e(a)

Its state counts what the router did, which decoding does not look at: training makes the balance
loss of it. The arithmetic is `equilm/ops/experts.py`. Read `hybrid.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from equilm.nn.linear import Linear
from equilm.ops.experts import experts


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Sizes of a mixture of experts.

    Args:
        hidden: U, width between, of each expert.
        experts: Y, how many there are; 16 as in Jamba.
        chosen: How many a token is sent to; 2 as in Jamba.
        balance: Weight of the balance loss, ≥ 0; 0.01 as in Fedus et al. 2021, arXiv 2101.03961.
    """

    kind: Literal["experts"] = "experts"
    hidden: int
    experts: int = 16
    chosen: int = 2
    balance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("hidden", "experts", "chosen"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if self.chosen > self.experts:
            raise ValueError(
                f"chosen: expected at most the {self.experts} experts, got {self.chosen}"
            )
        if not self.balance >= 0:
            raise ValueError(f"balance: expected a number >= 0, got {self.balance}")


class ExpertsState(NamedTuple):
    """Sums over a row's tokens, in float32."""

    chosen_BY: Tensor  # tokens sent to each expert
    share_BY: Tensor  # the router's probabilities


class Experts(nn.Module):
    """Y gated MLPs, of which each token takes the best few; no token is dropped.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections carry weight norm.

    Source: the router of Jamba (Lieber et al. 2024, arXiv 2403.19887): shares are probabilities
    among all experts, and are not scaled up to one.
    """

    takes_scaled = False

    def __init__(self, config: ExpertsConfig, width: int, *, weight_norm: bool = False) -> None:
        super().__init__()
        self.config, self.width = config, width
        count, hidden = config.experts, config.hidden
        self.router = Linear(width, count, weight_norm=weight_norm)
        self.w1 = Linear(width, count * hidden, weight_norm=weight_norm)
        self.w3 = Linear(width, count * hidden, weight_norm=weight_norm)
        self.w2 = Linear(hidden, count * width, weight_norm=weight_norm)

    def init_state(self, batch: int) -> ExpertsState:
        """Zeros."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        zeros_BY = like.new_zeros(batch, self.config.experts, dtype=dtype)
        return ExpertsState(zeros_BY, zeros_BY.clone())

    def forward(
        self, a_BTD: Tensor, state: ExpertsState | None = None, valid_B: Tensor | None = None
    ) -> tuple[Tensor, ExpertsState]:
        """Return y_BTD, and the sums with those of the first `valid_B` tokens."""
        chosen_BY, share_BY = state if state is not None else self.init_state(len(a_BTD))
        share_BTY = torch.softmax(self.router(a_BTD).to(share_BY.dtype), dim=-1)
        nobody_BTY = torch.zeros_like(share_BTY, dtype=torch.bool)
        best = share_BTY.topk(self.config.chosen, dim=-1).indices
        is_chosen_BTY = nobody_BTY.scatter(-1, best, True)
        y_RD = experts(
            a_BTD.flatten(0, 1), share_BTY.where(is_chosen_BTY, 0).flatten(0, 1), *self._weights()
        )
        counted_BTY, summed_BTY = is_chosen_BTY.to(share_BY.dtype), share_BTY
        if valid_B is not None:
            valid_BT = torch.arange(a_BTD.shape[1], device=valid_B.device) < valid_B[:, None]
            counted_BTY = counted_BTY.where(valid_BT[..., None], 0)
            summed_BTY = summed_BTY.where(valid_BT[..., None], 0)
        after = ExpertsState(chosen_BY + counted_BTY.sum(1), share_BY + summed_BTY.sum(1))
        return y_RD.unflatten(0, a_BTD.shape[:2]), after

    def balance_loss(self, before: ExpertsState | None, after: ExpertsState) -> Tensor:
        """weight · Y Σ_e (share of choices that went to e) · (mean probability of e), a scalar.

        The least is `weight`, where all experts are chosen alike. The gradient goes through the
        probabilities.

        Args:
            before: What was counted before the tokens in question; `None` means nothing.
            after: What was counted after them.

        Source: Fedus et al. 2021, arXiv 2101.03961, equation 4.
        """
        chosen_Y, share_Y = after.chosen_BY.sum(0), after.share_BY.sum(0)
        if before is not None:
            chosen_Y, share_Y = chosen_Y - before.chosen_BY.sum(0), share_Y - before.share_BY.sum(0)
        products_Y = chosen_Y / chosen_Y.sum() * (share_Y / share_Y.sum())
        return self.config.balance * self.config.experts * products_Y.sum()

    def flops_per_token(self) -> float:
        """The router, and three projections of each expert chosen."""
        return (
            2.0 * self.width * (self.config.experts + 3 * self.config.chosen * self.config.hidden)
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        count = self.config.experts
        w1, w3, w2 = (part.effective() for part in (self.w1, self.w3, self.w2))
        return (
            w1.unflatten(0, (count, -1)),
            w3.unflatten(0, (count, -1)),
            w2.unflatten(0, (count, -1)),
        )
