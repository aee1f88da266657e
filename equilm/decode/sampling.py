"""From logits to a token. What a row gets depends on its logits, its `Sampling` and its position.

No state and no generator: the draw at a position is a hash of (seed, position), the same on every
device and in every batch. Read `engine.py` next.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equilm.decode.request import Sampling


class Choice(NamedTuple):
    """Who chooses a token: the settings of a row, and the place of the token in the row."""

    sampling: Sampling
    position: int


# The logarithm of a chosen token's probability, and the likeliest ids with theirs, best first.
Odds = tuple[float | None, tuple[tuple[int, float], ...]]
NOTHING: Odds = (None, ())  # of a token whose chances nobody asked for


class _Columns(NamedTuple):
    """The settings of many rows as columns (B, 1) of float64 on the device of the logits."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    penalty: Tensor
    uniform: Tensor


def sample(logits_BV: Tensor, choices: Sequence[Choice], seen_BV: Tensor | None = None) -> Tensor:
    """Choose a token for every row: penalty, temperature, top-k, top-p, min-p, draw.

    Args:
        logits_BV: Float32 or wider.
        choices: One for each row.
        seen_BV: Tokens of the prompt and the answer so far; needed where there is a penalty.

    Returns:
        (B,) int64. A row gets what it would get alone. Tokens as likely as the last one kept by
        top-k or top-p are kept too.
    """
    columns = _columns(choices, logits_BV.device)
    if seen_BV is not None:
        logits_BV = penalised(logits_BV, seen_BV, columns.penalty)
    greedy_B = logits_BV.argmax(-1)
    if all(choice.sampling.temperature == 0 for choice in choices):
        return greedy_B
    scaled_BV = _scaled(logits_BV, columns.temperature)
    kept_BV = _truncated(scaled_BV, columns, [choice.sampling for choice in choices])
    drawn_B = _drawn(kept_BV, columns.uniform)
    return torch.where(columns.temperature[:, 0] == 0, greedy_B, drawn_B)


def is_simple(sampling: Sampling) -> bool:
    """Whether nothing but a temperature stands between the logits and the draw."""
    s = sampling
    return s.top_k == 0 and s.top_p == 1 and s.min_p == 0 and s.repetition_penalty == 1


def draw(logits_BV: Tensor, temperature_B1: Tensor, uniform_B1: Tensor) -> Tensor:
    """Return what `sample` does for rows that are simple; asks the device nothing.

    Args:
        logits_BV: Float32 or wider.
        temperature_B1: Float64.
        uniform_B1: Float64, `uniform` of each row.
    """
    drawn_B = _drawn(_scaled(logits_BV, temperature_B1), uniform_B1)
    return torch.where(temperature_B1[:, 0] == 0, logits_BV.argmax(-1), drawn_B)


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens already seen.

    Source: Keskar et al. 2019, arXiv 1909.05858, in the form that is common now.
    """
    factor_B1 = penalty_B1.to(logits_BV.dtype)
    lowered_BV = torch.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that is a function of the seed and the position alone."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    # Few enough bits that its product with a total is less than the total.
    return (int.from_bytes(digest) >> 24) / 2**40


def _scaled(logits_BV: Tensor, temperature_B1: Tensor) -> Tensor:
    return logits_BV.double() / temperature_B1.where(temperature_B1 != 0, 1)


def _drawn(logits_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """The first token whose cumulative share exceeds the draw; one of no probability never does."""
    total_BV = logits_BV.softmax(-1).cumsum(-1)
    return torch.searchsorted(total_BV, uniform_B1 * total_BV[:, -1:], right=True)[:, 0]


def _columns(choices: Sequence[Choice], device: torch.device) -> _Columns:
    rows = [
        (s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, uniform(s.seed, position))
        for s, position in choices
    ]
    # One tensor, so that there is one transfer.
    table = torch.tensor(rows, dtype=torch.float64).to(device)
    return _Columns(*table.T.unsqueeze(-1))


def _truncated(logits_BV: Tensor, columns: _Columns, rows: Sequence[Sampling]) -> Tensor:
    """Return the logits with those of the tokens left out at minus infinity."""
    vocab = logits_BV.shape[1]
    largest = min(max(row.top_k for row in rows), vocab)
    if largest:
        top_BK = logits_BV.topk(largest).values
        at_B1 = (columns.top_k.long().clamp(max=largest) - 1).clamp(min=0)
        bar_B1 = top_BK.gather(1, at_B1).where(columns.top_k > 0, -torch.inf)
        logits_BV = logits_BV.masked_fill(logits_BV < bar_B1, -torch.inf)
    if any(row.top_p < 1 for row in rows):
        sorted_BV = logits_BV.sort(dim=-1, descending=True).values
        share_BV = sorted_BV.softmax(-1)
        # A token is left out if those before it reach the share already.
        before_BV = share_BV.cumsum(-1) - share_BV
        kept_B1 = (before_BV < columns.top_p).sum(-1, keepdim=True).clamp(min=1)
        bar_B1 = sorted_BV.gather(1, kept_B1 - 1).where(columns.top_p < 1, -torch.inf)
        logits_BV = logits_BV.masked_fill(logits_BV < bar_B1, -torch.inf)
    if any(row.min_p > 0 for row in rows):
        log_share_B1 = columns.min_p.log()  # minus infinity where there is none
        bar_B1 = logits_BV.amax(-1, keepdim=True) + log_share_B1
        logits_BV = logits_BV.masked_fill(logits_BV < bar_B1, -torch.inf)
    return logits_BV


def logprobs(logits_BV: Tensor, tokens: Sequence[int], count: int) -> list[Odds]:
    """Return, row by row, the natural logarithm of a token's probability, and the `count` best.

    Args:
        logits_BV: As the model gave them.
        tokens: One for each row.
        count: How many alternatives, ≥ 0; (id, logarithm) each, the best first.
    """
    logprobs_BV = logits_BV.log_softmax(-1)
    at_B1 = torch.tensor(tokens, device=logits_BV.device)[:, None]
    own = logprobs_BV.gather(1, at_B1)[:, 0].tolist()
    best = logprobs_BV.topk(min(count, logits_BV.shape[1]))
    ids, values = best.indices.tolist(), best.values.tolist()
    tops = [tuple(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]
    return [(each, top) for each, top in zip(own, tops, strict=True)]
