"""The duality seen: how z moves to its fixed point in both modes, on the plane they spread most in.

Simultaneous, all tokens move at once; sequential, a token moves while those before it stand at
their fixed points. Both end at the same points. Read `equilm/solve/window.py` for the modes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from equilm.measure.evaluate import answer, solving
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solve
from equilm.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """One sequence followed in both modes, and the perplexity of a batch in both.

    Args:
        length: Tokens of the sequence that is followed, ≥ 2.
        sweeps: Simultaneous sweeps followed; sequentially a token takes as many evaluations.
        batch_size: Sequences of the perplexity.
        test_length: Their tokens.
        tolerance: Of their solves.
        max_steps: Evaluations a token may take there; simultaneously ten times as many in all.
        seed: Of the sequences.
    """

    length: int = 8
    sweeps: int = 40
    batch_size: int = 16
    test_length: int = 64
    tolerance: float = 0.01
    max_steps: int = 64
    seed: int = 0

    @torch.no_grad()
    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield both coordinates of each token (`row`) by step and mode, and both perplexities.

        Args:
            model: Implicit, in evaluation mode, on the device to use.
            task: Any.
        """
        batch = self._batch(task, self.length, 1)
        tokens_1T = batch.tokens_BT.to(model.embedding.device)
        simultaneous_STD = self._simultaneous(model, tokens_1T)
        sequential_STD = self._sequential(model, tokens_1T)
        mean_D, plane_D2, spread = _plane(simultaneous_STD, sequential_STD)
        about: dict[str, Any] = {"task": task.name, "split": "test", "length": self.length}
        yield Record(name="plane_variance", value=spread, unit="share", **about)
        modes = ((self.length, simultaneous_STD), (1, sequential_STD))
        for window, path_STD in modes:
            path_ST2 = (path_STD - mean_D) @ plane_D2
            for row in range(self.length):
                for axis, name in enumerate(("trajectory_x", "trajectory_y")):
                    values = path_ST2[:, row, axis].tolist()
                    yield Record(name=name, value=values, unit="1", row=row, window=window, **about)
        apart_T = (simultaneous_STD[-1] - sequential_STD[-1]).norm(dim=-1)
        apart = (apart_T / sequential_STD[-1].norm(dim=-1)).max().item()
        yield Record(name="modes_apart", value=apart, unit="1", **about)
        yield from self._perplexities(model, task)

    def _batch(self, task: Task, length: int, batch_size: int) -> Any:
        return task.batch(
            split="test", length=length, batch_size=batch_size, seed=self.seed, index=0
        )

    def _simultaneous(self, model: LanguageModel, tokens_1T: Tensor) -> Tensor:
        """z after 0, 1, … sweeps."""
        return torch.stack([_iterate(model, tokens_1T, None, s) for s in self._counts()])

    def _sequential(self, model: LanguageModel, tokens_1T: Tensor) -> Tensor:
        state, paths = model.init_state(1, tokens_1T.shape[1]), []
        exact = self._exact(model)
        for token in range(tokens_1T.shape[1]):
            one_11 = tokens_1T[:, token : token + 1]
            paths.append([_iterate(model, one_11, state, s)[0] for s in self._counts()])
            with solving(model, exact):
                _, state = model(one_11, state)
        return torch.stack([torch.stack(path) for path in paths], dim=1)

    def _counts(self) -> range:
        return range(self.sweeps + 1)

    def _exact(self, model: LanguageModel) -> Solve:
        core = model.core
        assert isinstance(core, Equilibrium), "expected an implicit model"
        return replace(core.solve, tolerance=1e-6, max_steps=500, window=None)

    def _perplexities(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        batch = self._batch(task, self.test_length, self.batch_size)
        solve = replace(self._exact(model), tolerance=self.tolerance)
        found = {}
        for window, steps in ((1, self.max_steps), (self.test_length, 10 * self.max_steps)):
            told = answer(model, batch, replace(solve, window=window, max_steps=steps)).scores
            count = told.counted_BT.sum().clamp(min=1)
            found[window] = (told.loss_BT.sum() / count).exp().item()
            about: dict[str, Any] = {"length": self.test_length, "window": window, "split": "test"}
            accuracy = (told.correct_BT.sum() / count).item()
            yield Record(name="perplexity", value=found[window], unit="1", task=task.name, **about)
            yield Record(name="accuracy", value=accuracy, unit="share", task=task.name, **about)
        yield Record(
            name="perplexity_difference",
            value=found[self.test_length] - found[1],
            unit="1",
            task=task.name,
            length=self.test_length,
            split="test",
        )


def _iterate(model: LanguageModel, tokens_1T: Tensor, state: Any, count: int) -> Tensor:
    """z_TD after `count` steps of the model's own step rule from zero."""
    core = model.core
    assert isinstance(core, Equilibrium), "expected an implicit model"
    if count == 0:
        return core.zeros(1, tokens_1T.shape[1])[0]
    solve = replace(core.solve, tolerance=0.0, max_steps=count, window=None, cycle=None)
    with solving(model, solve), observed(model) as found:
        model(tokens_1T, state)
    return found[0].value[0]


def _plane(*paths_STD: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean, two principal directions of the last points, and their share of the variance."""
    points_MD = torch.cat([path_STD[-1] for path_STD in paths_STD])
    mean_D = points_MD.mean(0)
    _, scale, directions = torch.linalg.svd(points_MD - mean_D, full_matrices=False)
    spread = scale.square()
    return mean_D, directions[:2].T, (spread[:2].sum() / spread.sum()).item()
