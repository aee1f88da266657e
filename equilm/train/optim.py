"""AdamW with weight decay where it belongs, and clipping. Read `trainer.py` next."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equilm.train.schedule import RateSchedule


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW; the defaults are the published state-tracking recipe.

    Args:
        rate: Peak learning rate, > 0.
        betas: Decay rates of the two moments, in [0, 1).
        weight_decay: Of matrices alone; vectors, gains, embedding, decay rates and step sizes have
            none.
        clip: Largest norm of the whole gradient, > 0.
        schedule: The rate during the run.

    Source: arXiv 2502.07827.
    """

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 0.25
    schedule: RateSchedule = field(default_factory=RateSchedule)

    def __post_init__(self) -> None:
        for name in ("rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {self.weight_decay}")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over two groups: matrices, decayed, and everything else."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith(("embedding", "head", "weight_g"))
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=config.betas, foreach=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients in place to a norm of at most `max_norm`; return the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm, foreach=True)
