"""Converted weights give what the public reference printed, to 1e-5 relative in float32.

What the files hold is told in `tests/golden/README.md`.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from equilm.hf.convert import load
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.folder import read_safetensors
from equilm.nn.model import LanguageModel
from equilm.solve.anderson import Anderson
from equilm.solve.gradient import Phantom
from equilm.solve.iterate import Solve
from equilm.solve.picard import Picard

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5


class Golden:
    """A model of the reference, and what the reference computes with it."""

    def __init__(self, family: str) -> None:
        self.model: LanguageModel = load(GOLDEN / f"implicit_{family}")
        assert isinstance(self.model.core, Equilibrium)
        self.core = self.model.core
        self.expected = read_safetensors(GOLDEN / f"implicit_{family}" / "expected.safetensors")
        self.tokens_BT = self.expected["input_ids"]
        self.targets_BT = self.expected["targets"]
        self.embedding_BTD = torch.nn.functional.embedding(self.tokens_BT, self.model.embedding)

    def parameter(self, name: str) -> torch.nn.Parameter:
        """Return ours by the reference's name."""
        inner = name.removeprefix("backbone.")
        return self.core.get_parameter(inner if "injection" in inner else f"body.{inner}")


@pytest.fixture(params=["mamba2", "llama"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Return each family in turn."""
    return Golden(request.param)


def error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖."""
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_embedding_and_injection(golden: Golden) -> None:
    assert error(golden.embedding_BTD, golden.expected["embedding"]) == 0
    inject_BTE = golden.core.inject(golden.embedding_BTD)
    assert error(inject_BTE, golden.expected["injection"]) < TOLERANCE


@torch.no_grad()
def test_one_evaluation_at_a_random_point(golden: Golden) -> None:
    inject_BTE = golden.core.inject(golden.embedding_BTD)
    z_BTD, _ = golden.core.body(golden.expected["z_probe"], None, inject_BTE)
    assert error(z_BTD, golden.expected["F_of_z_probe"]) < TOLERANCE


@torch.no_grad()
def test_undamped_iterates(golden: Golden) -> None:
    inject_BTE = golden.core.inject(golden.embedding_BTD)
    z_BTD = torch.zeros_like(golden.embedding_BTD)
    for expected_BTD in golden.expected["undamped_iterates_1_to_5"]:
        z_BTD, _ = golden.core.body(z_BTD, None, inject_BTE)
        assert error(z_BTD, expected_BTD) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(
    ("solver", "window"),
    [(Anderson(), 1), (Anderson(), 2), (Anderson(), 7), (Anderson(), None), (Picard(), None)],
)
def test_logits_at_the_fixed_point(
    solver: Anderson | Picard, window: int | None, golden: Golden
) -> None:
    mode = "sequential" if window == 1 else "simultaneous"
    golden.core.solve = Solve(
        solver=solver, tolerance=1e-7, max_steps=300, window=window, cycle=None
    )
    with observed(golden.model) as solutions:
        logits_BTV, _ = golden.model(golden.tokens_BT)
    assert error(logits_BTV, golden.expected[f"{mode}_logits_tol1e-7"]) < TOLERANCE
    # The rounding of float32 lies between 1e-7 and 2e-7 for some tokens.
    assert all(solution.residual.max() < 2e-7 for solution in solutions)


@torch.no_grad()
def test_logits_token_by_token_with_a_carried_state(golden: Golden) -> None:
    golden.core.solve = Solve(solver=Anderson(), tolerance=1e-7, max_steps=300, cycle=None)
    state = golden.model.init_state(2, 5)
    pieces = []
    for tokens_B1 in golden.tokens_BT[:, :5].split(1, dim=1):
        logits_B1V, state = golden.model(tokens_B1, state)
        pieces.append(logits_B1V)
    logits_BTV = torch.cat(pieces, dim=1)
    assert error(logits_BTV, golden.expected["sequential_logits_tol1e-7"][:, :5]) < TOLERANCE


@pytest.mark.parametrize(("sweeps", "steps"), [(4, 1), (24, 4)])
def test_phantom_losses_and_gradients(sweeps: int, steps: int, golden: Golden) -> None:
    golden.core.solve = Solve(
        solver=Picard(damping=1.0), tolerance=0.0, max_steps=sweeps, cycle=None
    )
    golden.core.gradient = Phantom(steps=steps, damping=0.8)
    logits_BTV, _ = golden.model(golden.tokens_BT)
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), golden.targets_BT.flatten())
    loss.backward()
    assert error(loss[None], golden.expected[f"phantom_{sweeps}+{steps}_loss"]) < TOLERANCE
    prefix = f"phantom_{sweeps}+{steps}_grad."
    names = [name for name in golden.expected if name.startswith(prefix)]
    assert len(names) >= 4
    for name in names:
        gradient = golden.parameter(name.removeprefix(prefix)).grad
        assert gradient is not None
        assert error(gradient, golden.expected[name]) < TOLERANCE, name
