"""How fast a trained model trains and decodes, and how much it carries from token to token.

For a table of many mixers: small shapes, nothing of a device's limits. `bench` measures those.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from equilm import tree
from equilm.measure.bench.clock import median_ms
from equilm.measure.evaluate import solving
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record, software
from equilm.solve import Phantom
from equilm.tasks import IGNORE, Task


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What to time, on random tokens.

    Args:
        batch_size: Sequences of a training step.
        length: Tokens of one; and tokens that are behind when decoding is timed.
        slots: Sequences decoded at once.
        sweeps: The (s + k) of an implicit model's training step.
        tolerance: When a token is decoded, with the model's own step rule.
        max_steps: Evaluations it may take.
        repeats: Steps of either kind that are timed; the median counts.
    """

    batch_size: int = 16
    length: int = 256
    slots: int = 16
    sweeps: tuple[int, int] = (16, 4)
    tolerance: float = 0.01
    max_steps: int = 64
    repeats: int = 3

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield tokens a second in training and in decoding, and bytes of a row's state."""
        about: dict[str, Any] = {"task": task.name, "length": self.length, "software": software()}
        generator = torch.Generator().manual_seed(0)
        shape = (max(self.batch_size, self.slots), self.length)
        tokens_BT = torch.randint(model.vocab_size, shape, generator=generator)
        tokens_BT = tokens_BT.to(model.embedding.device)
        trained = self._train_ms(model, tokens_BT[: self.batch_size])
        speed = 1000 * self.batch_size * self.length / trained
        told: dict[str, Any] = {"unit": "tokens/s", "precision": "float32", **about}
        yield Record(name="train_tokens_per_second", value=speed, batch=self.batch_size, **told)
        speed = 1000 * self.slots / self._decode_ms(model, tokens_BT[: self.slots])
        yield Record(name="decode_tokens_per_second", value=speed, batch=self.slots, **told)
        leaves = tree.leaves(model.init_state(1, self.length))
        size = float(sum(leaf.numel() * leaf.itemsize for leaf in leaves))
        yield Record(name="state_bytes", value=size, unit="bytes", **about)

    def _train_ms(self, model: LanguageModel, tokens_BT: Tensor) -> float:
        """The time of loss and backward, without the optimizer."""
        solve, gradient = None, None
        if isinstance(model.core, Equilibrium):
            free, phantom = self.sweeps
            # No token stops early, so that all models are timed at the same work.
            solve = replace(model.core.solve, tolerance=0.0, max_steps=free, window=None)
            gradient, model.core.gradient = model.core.gradient, Phantom(steps=phantom)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            found = model.loss(tokens_BT, tokens_BT, ignore=IGNORE)
            (found.loss_sum / found.num_targets).backward()

        model.train()
        with solving(model, solve):
            took = median_ms([step], tokens_BT.device, repeats=self.repeats)
        model.eval().zero_grad(set_to_none=True)
        if isinstance(model.core, Equilibrium):
            assert gradient is not None
            model.core.gradient = gradient
        return took

    @torch.no_grad()
    def _decode_ms(self, model: LanguageModel, tokens_BT: Tensor) -> float:
        """The time of one token a row, after all but the last."""
        solve = None
        if isinstance(model.core, Equilibrium):
            solve = replace(
                model.core.solve, tolerance=self.tolerance, max_steps=self.max_steps, window=1
            )
        before = model.init_state(len(tokens_BT), self.length)
        with solving(model, None if solve is None else replace(solve, window=None)):
            _, before = model(tokens_BT[:, :-1], before)
        with solving(model, solve):
            # The state is a value: every run goes on from the same one.
            return median_ms(
                [lambda: model(tokens_BT[:, -1:], before)], tokens_BT.device, repeats=self.repeats
            )
