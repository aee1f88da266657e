"""RWKV-6 (Finch), its time mixing: tokens blend with the one before, and choose what they forget.

    x̃_i = x_t + (x_{t−1} − x_t) (μ_i + tanh((x_t + (x_{t−1} − x_t) μ_x) A) B_i)   i of r, k, v, g, w
    r, k, v, g = W_i x̃_i + inject,   w = exp(−exp(w₀ + W_2 tanh(W_1 x̃_w) + inject))
    y_t = (S_{t−1} + diag(u) k_t v_tᵀ)ᵀ r_t,   S_t = diag(w_t) S_{t−1} + k_t v_tᵀ
    W_out (LayerNorm(y) · SiLU(g))

The state has H · N · P numbers with N = P = D / H, and the last token. RWKV's channel mixing is
left to the MLP of a block. Read `rglru.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.key_value import HeadOutput, split_evenly
from equilm.nn.linear import Linear
from equilm.nn.mixer import Mixer
from equilm.ops.linear_attention import linear_attention, masked


@dataclass(frozen=True, kw_only=True)
class RWKV6Config:
    """Sizes of an RWKV-6 mixer; the defaults are the published ones but for the heads.

    Args:
        heads: H, of width D / H. Published: heads of width 64.
        blend_rank: Width between A and B.
        decay_rank: Width between W_1 and W_2.
        norm_eps: Added to the variance in the norm of each head, > 0.
    """

    kind: Literal["rwkv6"] = "rwkv6"
    heads: int = 4
    blend_rank: int = 32
    decay_rank: int = 64
    norm_eps: float = 64e-5

    def __post_init__(self) -> None:
        for name in ("blend_rank", "decay_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: expected a number > 0, got {self.norm_eps}")


class RWKV6State(NamedTuple):
    """What RWKV-6 carries from token to token, in float32."""

    last_BD: Tensor  # the last input
    memory_BHNP: Tensor


class HeadLayerNorm(nn.Module):
    """Layer norm of each head, with a weight and a bias for every channel of every head."""

    def __init__(self, heads: int, size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(heads, size))
        self.bias = nn.Parameter(torch.empty(heads, size))

    def forward(self, y_BTHP: Tensor) -> Tensor:
        """Return (B, T, H, P)."""
        normed_BTHP = F.layer_norm(y_BTHP, y_BTHP.shape[-1:], eps=self.eps)
        return normed_BTHP * self.weight + self.bias


class RWKV6(Mixer):
    """RWKV-6's time mixing.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Peng et al. 2024, arXiv 2404.05892; initial values as there in the first layer.
    """

    takes_starts = True

    def __init__(
        self, config: RWKV6Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inject_width = config, width, 5 * width
        self.size = split_evenly("width", width, config.heads)
        self.blend_base = nn.Parameter(torch.empty(width))
        self.blend = nn.Parameter(torch.empty(5, width))
        self.blend_in = Linear(width, 5 * config.blend_rank, weight_norm=weight_norm)
        self.blend_out = nn.Parameter(torch.empty(5, config.blend_rank, width))
        self.rkvg_proj = nn.ModuleList(
            [Linear(width, width, weight_norm=weight_norm) for _ in range(4)]
        )
        self.decay_in = Linear(width, config.decay_rank, weight_norm=weight_norm)
        self.decay_out = Linear(config.decay_rank, width, weight_norm=weight_norm)
        self.decay = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(config.heads, self.size))
        norm = HeadLayerNorm(config.heads, self.size, eps=config.norm_eps)
        self.output = HeadOutput(norm, width, width, weight_norm=weight_norm, dropout=dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Let channels forget at rates that range over the width; each blends by its place."""
        place_D = torch.arange(self.width) / max(self.width - 1, 1)
        self.blend_base.copy_(1 - place_D)
        # r and g blend less than k, v and w.
        for part, power in zip(self.blend, (0.5, 1, 1, 0.5, 1), strict=True):
            part.copy_(1 - place_D**power)
        drawn = 2 * torch.rand(self.blend_out.shape, generator=generator) - 1
        self.blend_out.copy_(0.01 * drawn)
        self.decay.copy_(-6 + 5 * place_D**0.7)
        self.bonus.copy_(0.1 * ((torch.arange(1, self.width + 1) % 3) - 1).view_as(self.bonus))
        norm = self.output.norm
        assert isinstance(norm, HeadLayerNorm)
        norm.weight.fill_(1.0)
        norm.bias.zero_()

    def init_state(self, batch: int, capacity: int) -> RWKV6State:
        """Zeros; the state does not grow with `capacity`."""
        like, size = self.decay, self.size
        dtype = torch.promote_types(like.dtype, torch.float32)
        return RWKV6State(
            like.new_zeros(batch, self.width, dtype=dtype),
            like.new_zeros(batch, self.config.heads, size, size, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RWKV6State | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, RWKV6State]:
        """See `Mixer`."""
        last_BD, memory_BHNP = state if state is not None else self.init_state(len(x_BTD), 0)
        seen_BSD = torch.cat([last_BD[:, None], x_BTD.to(last_BD.dtype)], dim=1)
        *blended, w_BTD = self._blended(seen_BSD, starts_BT)
        parts = [proj(part_BTD) for proj, part_BTD in zip(self.rkvg_proj, blended, strict=True)]
        parts.append(self.decay_out(torch.tanh(self.decay_in(w_BTD))))
        if inject_BTE is not None:
            added = inject_BTE.split(self.width, dim=-1)
            parts = [part + more for part, more in zip(parts, added, strict=True)]
        *rkv, g_BTI, w_BTD = parts
        # Beyond exp(10) nothing is left in any type, and its gradient would not be finite.
        log_decay_BTD = -torch.exp((w_BTD.to(last_BD.dtype) + self.decay).clamp(max=10.0))
        r_BTHN, k_BTHN, v_BTHP, log_decay_BTHN = (
            part_BTD.to(last_BD.dtype).unflatten(-1, (self.config.heads, -1))
            for part_BTD in (*rkv, log_decay_BTD)
        )
        k_BTHN, log_decay_BTHN = masked(k_BTHN, log_decay_BTHN, valid_B, starts_BT)
        # What token t reads is the state behind t − 1, as if that one had asked for it.
        asked_BTHN = F.pad(r_BTHN[:, 1:], (0, 0, 0, 0, 0, 1))
        read_BTHP, after_BHNP = linear_attention(
            asked_BTHN, k_BTHN, v_BTHP, log_decay_BTHN, memory_BHNP
        )
        first_B1HP = (r_BTHN[:, 0, :, None] @ memory_BHNP).transpose(1, 2)
        y_BTHP = torch.cat([first_B1HP, read_BTHP[:, :-1]], dim=1)
        if starts_BT is not None:
            y_BTHP = y_BTHP.masked_fill(starts_BT[..., None, None], 0)
        y_BTHP = y_BTHP + (r_BTHN * self.bonus * k_BTHN).sum(-1, keepdim=True) * v_BTHP
        return self.output(y_BTHP, g_BTI), RWKV6State(self._last(seen_BSD, valid_B), after_BHNP)

    def flops_per_token(self, length: int) -> float:
        """The projections and blends; one decay, one update and one read of the memory."""
        config, width = self.config, self.width
        ranks = 2 * 5 * config.blend_rank + 2 * config.decay_rank
        return 2.0 * width * (5 * width + ranks + 3 * self.size)

    def _blended(self, seen_BSD: Tensor, starts_BT: Tensor | None) -> tuple[Tensor, ...]:
        """What r, k, v, g and w are made of: each token and the one before it."""
        before_BTD, x_BTD = seen_BSD[:, :-1], seen_BSD[:, 1:]
        if starts_BT is not None:
            before_BTD = before_BTD.masked_fill(starts_BT[..., None], 0)
        change_BTD = before_BTD - x_BTD
        hidden_BTX = torch.tanh(self.blend_in(x_BTD + change_BTD * self.blend_base))
        hidden_BTXR = hidden_BTX.unflatten(-1, (5, -1)).to(self.blend_out.dtype)
        share_BTXD = self.blend + torch.einsum("btxr,xrd->btxd", hidden_BTXR, self.blend_out)
        return (x_BTD[:, :, None] + change_BTD[:, :, None] * share_BTXD).unbind(2)

    def _last(self, seen_BSD: Tensor, valid_B: Tensor | None) -> Tensor:
        """The last token that counts, or the one before all."""
        if valid_B is None:
            return seen_BSD[:, -1]
        return seen_BSD[torch.arange(len(seen_BSD), device=valid_B.device), valid_B]
