"""How much work an answer takes: by the hardness of the token, by the tolerance asked for.

A token of a word problem is hard if it changes the product, easy if it is the identity. Read
`evaluate.py` next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from equilm.measure.evaluate import answer
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solve
from equilm.tasks import Batch, Task, WordProblem


@dataclass(frozen=True, kw_only=True)
class HardShares:
    """Accuracy and evaluations at some shares of hard tokens, solved token by token.

    Args:
        shares: Of hard tokens, in (0, 1].
        length: Tokens.
        batch_size: Sequences.
        tolerance: Of the solve.
        max_steps: Evaluations a token may take.
        window: Tokens solved at once.
        seed: Of the sequences.
    """

    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    length: int = 256
    batch_size: int = 16
    tolerance: float = 0.01
    max_steps: int = 64
    window: int = 1
    seed: int = 0

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield series along `shares`: accuracy, evaluations of all, of easy and of hard tokens.

        Args:
            model: In evaluation mode, on the device to use.
            task: A word problem; its own share of identities is not used.
        """
        assert isinstance(task, WordProblem)
        names = ("accuracy", "evaluations", "evaluations_easy", "evaluations_hard")
        series: dict[str, list[float]] = {name: [] for name in names}
        for share in self.shares:
            harder = WordProblem(replace(task.config, identity_probability=1 - share))
            batch = harder.batch(
                split="test",
                length=self.length,
                batch_size=self.batch_size,
                seed=self.seed,
                index=0,
            )
            hard_BT = batch.tokens_BT != harder.monoid.identity
            answers = answer(
                model, batch, _solve(model, self.window, self.tolerance, self.max_steps)
            )
            series["accuracy"].append(answers.scores.correct_BT.float().mean().item())
            if answers.solution is not None:
                steps_BT = answers.solution.steps.cpu().float()
                series["evaluations"].append(steps_BT.mean().item())
                series["evaluations_easy"].append(steps_BT[~hard_BT].mean().item())
                series["evaluations_hard"].append(steps_BT[hard_BT].mean().item())
        window = self.window if isinstance(model.core, Equilibrium) else None
        about: dict[str, Any] = {
            "task": task.name,
            "split": "test",
            "length": self.length,
            "window": window,
        }
        if window is not None:
            about |= {"tolerance": self.tolerance, "max_steps": self.max_steps}
        yield Record(name="hard_shares", value=list(self.shares), unit="share", **about)
        for name, values in series.items():
            unit = "share" if name == "accuracy" else "evaluations"
            if values:
                yield Record(name=f"{name}_by_hard_share", value=values, unit=unit, **about)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Accuracy and evaluations at some tolerances, solved token by token.

    Args:
        tolerances: Relative, > 0.
        length: Tokens.
        batch_size: Sequences.
        max_steps: Evaluations a token may take.
        window: Tokens solved at once.
        seed: Of the sequences.
    """

    tolerances: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6)
    length: int = 1000
    batch_size: int = 16
    max_steps: int = 64
    window: int = 1
    seed: int = 0

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield series along `tolerances`: accuracy and evaluations a token.

        Args:
            model: Implicit, in evaluation mode, on the device to use.
            task: Any with one answer a token.
        """
        batch: Batch = task.batch(
            split="test", length=self.length, batch_size=self.batch_size, seed=self.seed, index=0
        )
        accuracy, evaluations = [], []
        for tolerance in self.tolerances:
            solve = _solve(model, self.window, tolerance, self.max_steps)
            found = answer(model, batch, solve)
            assert found.solution is not None
            asked = found.scores.counted_BT
            accuracy.append(found.scores.correct_BT[asked].float().mean().item())
            evaluations.append(found.solution.steps.float().mean().item())
        about: dict[str, Any] = {
            "task": task.name,
            "split": "test",
            "length": self.length,
            "window": self.window,
            "max_steps": self.max_steps,
        }
        yield Record(name="tolerances", value=list(self.tolerances), unit="1", **about)
        yield Record(name="accuracy_by_tolerance", value=accuracy, unit="share", **about)
        yield Record(
            name="evaluations_by_tolerance", value=evaluations, unit="evaluations", **about
        )


def _solve(model: LanguageModel, window: int, tolerance: float, max_steps: int) -> Solve | None:
    core = model.core
    if not isinstance(core, Equilibrium):
        return None
    return replace(core.solve, window=window, tolerance=tolerance, max_steps=max_steps)
