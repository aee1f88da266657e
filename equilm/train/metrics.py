"""Where the numbers of a run go: `metrics.jsonl`, and TensorBoard on request. Read `trainer.py`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    sweeps: float  # evaluations without gradient that a solve took, 0 while there is no solve
    learning_rate: float
    grad_norm: float  # before clipping; not finite where the step was skipped
    tokens_per_second: float
    seconds: float  # of training since the first step

    def records(self, about: Mapping[str, Any]) -> Iterator[Record]:
        """Yield the Records of this step; `about` holds further fields of each."""
        units = {
            "loss": "nats",
            "accuracy": "share",
            "length": "tokens",
            "sweeps": "evaluations",
            "learning_rate": "1",
            "grad_norm": "1",
            "tokens_per_second": "tokens/s",
            "seconds": "s",
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
    """An open `metrics.jsonl`, and the writer of a TensorBoard log beside it, if given.

    Args:
        folder: Of the run.
        writer: TensorBoard's, open.
    """

    def __init__(self, folder: Path, writer: Any = None) -> None:
        self.path, self.writer = folder / "metrics.jsonl", writer

    def write(self, records: Iterable[Record]) -> None:
        """Append the Records, and their scalars to TensorBoard.

        Raises:
            OSError: If they could not be written; names the file.
        """
        records = list(records)
        try:
            record.append(self.path, records)
        except OSError as error:
            raise OSError(f"{self.path}: could not be written ({error})") from None
        for one in records if self.writer is not None else ():
            if isinstance(one.value, float):
                self.writer.add_scalar(f"{one.split or 'run'}/{one.name}", one.value, one.step)


@contextmanager
def opened(folder: Path, writer: Callable[..., Any] | None, *, step: int) -> Iterator[Metrics]:
    """Open the metrics of a run for the duration of the block.

    Args:
        folder: Of the run.
        writer: From `summary_writer`, to write `folder/tensorboard` too.
        step: Taken so far; TensorBoard forgets what was logged beyond.
    """
    if writer is None:
        yield Metrics(folder)
        return
    with writer(str(folder / "tensorboard"), purge_step=step + 1) as board:
        yield Metrics(folder, board)


def summary_writer() -> Callable[..., Any]:
    """Return TensorBoard's SummaryWriter, imported on request.

    Raises:
        ValueError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard: expected the package, got none; pip install equilm[tensorboard]"
        ) from None
    return SummaryWriter
