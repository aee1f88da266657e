"""Records such as a demo writes: an implicit model that holds on, an explicit one that does not."""

import math

import numpy as np
import pytest

from equilm.record import Record

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2000)
CURRICULUM = (2, 3, 4, 6, 8, 11, 15, 20)
CHANCE = 1 / 6
MODEL = {
    "jacobian_autograd": "implicit",
    "jacobian_theorem1": "implicit",
    "jacobian_explicit": "explicit",
}
RESIDUALS = [[0.9 * (0.55 + 0.03 * token) ** sweep for sweep in range(24)] for token in range(8)]


def _training(model: str, noise: np.random.Generator) -> list[Record]:
    found = []
    for step in range(1, 651):
        stage = min(step // 32, len(CURRICULUM) - 1)
        fresh = math.exp(-(step % 32) / 9) if stage < len(CURRICULUM) - 1 else 0
        floor = 0.002 if model == "implicit" else 0.15 + 0.11 * stage
        loss = floor + (0.5 + 0.8 * (step < 32)) * fresh + 0.02 * noise.exponential()
        accuracy = max(CHANCE, math.exp(-0.7 * loss))
        values = {
            "loss": (loss, "nats"),
            "accuracy": (accuracy, "share"),
            "length": (float(CURRICULUM[stage]), "tokens"),
            "tokens_per_second": (30_000.0, "tokens/s"),
        }
        for name, (value, unit) in values.items():
            found.append(
                Record(
                    name=name, value=value, unit=unit, model=model, split="train", step=step, seed=0
                )
            )
    return found


def _by_position(model: str, length: int) -> list[float]:
    at = np.arange(length)
    if model == "implicit":
        return [1.0] * length
    return list(CHANCE + (1 - CHANCE) / (1 + np.exp((at - 24) / 4)))


def _evaluation(
    model: str, window: int | None, length: int, noise: np.random.Generator
) -> list[Record]:
    right = _by_position(model, length)
    cost = 1.0 if model == "explicit" else 10.5 if window == 1 else 24 + 0.4 * (window or 0)
    values: dict[str, tuple[float | list[float], str]] = {
        "accuracy": (float(np.mean(right)), "share"),
        "accuracy_last10": (float(np.mean(right[-10:])), "share"),
        "accuracy_by_position": (right, "share"),
        "evaluations_per_token": (cost, "evaluations"),
        "tokens_per_second": (90_000 / cost, "tokens/s"),
    }
    if model == "implicit":
        values |= {
            "converged": (0.982, "share"),
            "capped": (0.003, "share"),
            "cycling": (0.015, "share"),
        }
    about = {
        "model": model, "task": "word_problem S3", "split": "test", "length": length,
        "window": window, "step": 650, "seed": 0,
    }  # fmt: skip
    found = [Record(name=n, value=v, unit=u, **about) for n, (v, u) in values.items()]  # type: ignore[arg-type]
    if model == "implicit" and length == LENGTHS[-1]:
        growth = 0 if window == 1 else 1
        for row in range(16):
            series = 10 + noise.gamma(2, 1.5, length) + growth * np.minimum(np.arange(length), 64)
            series = np.where(noise.random(length) < 0.004, 40 + 60 * growth, series)
            found.append(
                Record(
                    name="evaluations", value=series.round().tolist(), unit="evaluations", row=row,
                    **about,  # type: ignore[arg-type]
                )
            )  # fmt: skip
    return found


def _matrices(noise: np.random.Generator) -> list[Record]:
    size = 24
    explicit = np.diag(np.repeat([0.9, 0.5, 0.2], size // 3))
    dense = explicit + 0.18 * noise.standard_normal((size, size))
    matrices = {
        "jacobian_autograd": dense,
        "jacobian_theorem1": dense + 1e-12 * noise.standard_normal((size, size)),
        "jacobian_explicit": explicit,
    }
    return [
        Record(name=name, value=row.tolist(), unit="1", model=MODEL[name], row=index)
        for name, matrix in matrices.items()
        for index, row in enumerate(matrix)
    ]


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """What one demo run leaves behind."""
    return synthetic()


def synthetic() -> list[Record]:
    """Records of one seed: training, evaluation in three modes, residuals and Jacobians."""
    noise = np.random.default_rng(0)
    found = _training("implicit", noise) + _training("explicit", noise)
    for length in LENGTHS:
        for window in (1, 64, length):
            found += _evaluation("implicit", min(window, length), length, noise)
        found += _evaluation("explicit", None, length, noise)
    found += [
        Record(
            name="residual_by_sweep",
            value=series,
            unit="1",
            model="implicit",
            window=128,
            length=128,
            row=16 * token,
        )
        for token, series in enumerate(RESIDUALS)
    ]
    for model, size in (("implicit", 61_312.0), ("explicit", 61_312.0)):
        found.append(Record(name="parameters", value=size, unit="count", model=model))
        found.append(Record(name="seconds", value=41.3, unit="s", model=model))
    found.append(Record(name="chance", value=CHANCE, unit="share", task="word_problem S3"))
    return found + _matrices(noise)
