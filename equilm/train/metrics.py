"""Where the numbers of a run go: `metrics.jsonl`, and TensorBoard on request. Read `trainer.py`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equilm import record
from equilm.record import Record


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step was like."""

    step: int  # steps taken, this one included
    loss: float  # nats a target
    accuracy: float  # share of the targets
    length: int  # tokens
    sweeps: float  # evaluations a solve that depended on each other, phantom steps included
    learning_rate: float
    grad_norm: float  # before clipping; not finite where the step was skipped
    tokens_per_second: float
    seconds: float  # of training since the first step

    def records(self, **about: Any) -> Iterator[Record]:
        """Yield the Records of this step; `about` are further fields of each."""
        units = {
            "loss": "nats",
            "accuracy": "share",
            "length": "tokens",
            "sweeps": "evaluations",
            "learning_rate": "1",
            "grad_norm": "1",
            "tokens_per_second": "tokens/s",
        }
        for name, unit in units.items():
            value = float(getattr(self, name))
            yield Record(
                name=name,
                value=value,
                unit=unit,
                step=self.step,
                length=self.length,
                split="train",
                **about,
            )


class Metrics:
    """An open `metrics.jsonl`, and a TensorBoard log beside it if asked for.

    Args:
        folder: Of the run.
        tensorboard: Whether to write `folder/tensorboard` too; needs the extra `tensorboard`.

    Raises:
        ValueError: If TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise ValueError(
                    "tensorboard: expected the package, got none; pip install equilm[tensorboard]"
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, records: Iterable[Record]) -> None:
        """Append the Records, and their scalars to TensorBoard."""
        records = list(records)
        record.append(self.path, records)
        for one in records if self._board is not None else ():
            if isinstance(one.value, float):
                self._board.add_scalar(f"{one.split}/{one.name}", one.value, one.step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()


@contextmanager
def opened(folder: Path, *, tensorboard: bool) -> Iterator[Metrics]:
    """Open the metrics of a run for the duration of the block."""
    metrics = Metrics(folder, tensorboard=tensorboard)
    try:
        yield metrics
    finally:
        metrics.close()
