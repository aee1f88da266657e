"""Sampling keeps the right tokens, draws with the right shares, and looks at its row alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.decode.request import Sampling
from equilm.decode.sampling import Choice, logprobs, sample, uniform

SHARES = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
DRAWS = 4000


def drawn(logits_V: Tensor, seen: tuple[int, ...] = (), **settings: Any) -> Tensor:
    """Return the shares of the tokens in many draws at different positions."""
    sampling = Sampling(**settings)
    seen_BV = torch.zeros(DRAWS, len(logits_V), dtype=torch.bool)
    seen_BV[:, list(seen)] = True
    choices = [Choice(sampling, position) for position in range(DRAWS)]
    ids = sample(logits_V.expand(DRAWS, -1), choices, seen_BV)
    return torch.bincount(ids, minlength=len(logits_V)) / DRAWS


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 0}, [1]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.1}, [1]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        # Of the three kept by top-k the first two have 0.7 / 0.85 = 0.82.
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),
        ({"min_p": 0.36}, [1, 3, 4]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 4, "min_p": 0.2}, [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_what_is_kept_is_drawn_by_its_share(settings: dict[str, Any], kept: list[int]) -> None:
    expected = torch.zeros(5)
    expected[kept] = SHARES[kept] / SHARES[kept].sum()
    shares = drawn(SHARES.log() + 7, **settings)
    assert (shares > 0).nonzero().flatten().tolist() == kept
    # Three standard deviations of a share are at most 3 · 0.5 / √4000.
    assert (shares - expected).abs().max() < 0.024


def test_temperature_sharpens() -> None:
    expected = SHARES**2 / (SHARES**2).sum()
    assert (drawn(SHARES.log(), temperature=0.5) - expected).abs().max() < 0.024


def test_tokens_already_seen_become_less_likely() -> None:
    logits_V = torch.tensor([1.0, -1.0, 0.0, 2.0])
    shares = drawn(logits_V, seen=(0, 1, 2), repetition_penalty=2.0)
    expected = torch.tensor([0.5, -2.0, 0.0, 2.0]).softmax(0)
    assert (shares - expected).abs().max() < 0.024
    best = sample(
        torch.tensor([[3.0, 2.0]]),
        [Choice(Sampling(temperature=0, repetition_penalty=2.0), 0)],
        torch.tensor([[True, False]]),
    )
    assert best.tolist() == [1]


def test_a_row_gets_what_it_gets_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(40, 50, generator=generator)
    choices = [
        Choice(
            Sampling(
                temperature=(0, 0.7, 1.5)[row % 3],
                top_k=(0, 5, 20)[row % 4 % 3],
                top_p=(1.0, 0.8)[row % 2],
                min_p=(0.0, 0.1)[row % 5 % 2],
                repetition_penalty=(1.0, 1.5)[row % 7 % 2],
                seed=row,
            ),
            row,
        )
        for row in range(40)
    ]
    seen_BV = torch.rand(40, 50, generator=generator) < 0.3
    together = sample(logits_BV, choices, seen_BV)
    alone = [
        int(sample(logits_BV[row : row + 1], [choices[row]], seen_BV[row : row + 1]))
        for row in range(40)
    ]
    assert together.tolist() == alone


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits_V = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert drawn(logits_V)[[0, 2, 4]].sum() == 0


def test_draws_are_a_function_of_seed_and_position() -> None:
    assert uniform(1, 2) == uniform(1, 2) == 0.7612170620877805
    draws = torch.tensor([[uniform(seed, at) for at in range(200)] for seed in range(20)])
    assert draws.unique().numel() == 4000
    assert draws.min() >= 0 and draws.max() < 1
    assert (draws.mean() - 0.5).abs() < 0.02
    # Neither neighbours nor seeds go together.
    assert draws.corrcoef().fill_diagonal_(0).abs().max() < 0.3


def test_logarithms_of_probabilities() -> None:
    logits_BV = torch.stack([SHARES.log() + 3, torch.zeros(5)])
    (own, best), (other, ties) = logprobs(logits_BV, [4, 2], 2)
    assert own == pytest.approx(-1.8971, abs=1e-4)
    assert [number for number, _ in best] == [1, 3]
    assert [value for _, value in best] == pytest.approx([-0.9163, -1.2040], abs=1e-4)
    assert other == pytest.approx(-1.6094, abs=1e-4) and len(ties) == 2
    assert logprobs(logits_BV, [0, 0], 0)[0][1] == ()
    assert len(logprobs(logits_BV, [0, 0], 99)[0][1]) == 5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -1}, "temperature: expected a number >= 0, got -1"),
        ({"temperature": float("nan")}, "temperature: expected a number >= 0, got nan"),
        ({"top_k": -1}, "top_k: expected an integer >= 0, got -1"),
        ({"top_p": 0}, r"top_p: expected a number in \(0, 1\], got 0"),
        ({"min_p": 1.1}, r"min_p: expected a number in \[0, 1\], got 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number > 0, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(**settings)
