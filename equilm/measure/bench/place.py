"""Where and in which type is measured, and what a row gives, as Records.

Read `equilm/report/speed.py` for how they are shown.
"""

from dataclasses import dataclass

import torch

from equilm import record
from equilm.measure.bench.floors import Work, floor
from equilm.measure.bench.rows import REFERENCE_DEVICE, Row
from equilm.record import Record

UNITS = {
    "time": "ms",
    "speed": "tokens/s",
    "rate": "TFLOP/s",
    "bandwidth": "TB/s",
    "memory": "GiB",
    "floor_compute": "ms",
    "floor_memory": "ms",
    "reference": "ms",
    "reference_memory": "GiB",
    "goal": "ms",
    "goal_memory": "GiB",
}

TYPES = {torch.bfloat16: "bf16", torch.float32: "float32"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device, the type that products are computed in there, and what Records say of both."""

    device: torch.device
    dtype: torch.dtype
    name: str
    commit: str = ""
    software: str = ""

    def computing(self) -> torch.autocast:
        """The context in which a trainer computes in this type."""
        half = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)


def here() -> Place:
    """The GPU in bf16 if there is one, else the CPU in float32."""
    device, dtype, name = torch.device("cpu"), torch.float32, "cpu"
    if torch.cuda.is_available():
        device, dtype, name = torch.device("cuda"), torch.bfloat16, torch.cuda.get_device_name()
    commit, software = record.environment()["commit"], record.software()
    return Place(device=device, dtype=dtype, name=name, commit=commit, software=software)


def records_of(
    what: str, row: Row, place: Place, *, ms: float, work: Work, peak_gib: float | None = None
) -> list[Record]:
    """Return the Records of a row: what came out, its floor, the reference and the goal.

    Args:
        what: Of which benchmark, the start of their names.
        row: What was timed.
        place: Where.
        ms: Median time.
        work: What had to be done.
        peak_gib: The most memory held, if it was measured.
    """
    values = {
        "time": ms,
        "speed": row.batch * row.length / ms * 1e3,
        "rate": work.all_flops / ms / 1e9,
        "bandwidth": work.bytes / ms / 1e9,
        "memory": peak_gib,
    }
    least = floor(work, place.name)
    if least is not None:
        values |= {"floor_compute": least.compute_ms, "floor_memory": least.memory_ms}
    if place.name == REFERENCE_DEVICE:
        values |= {
            "reference": row.known.reference_ms,
            "reference_memory": row.known.reference_gib,
            "goal": row.known.goal_ms,
            "goal_memory": row.known.goal_gib,
        }
    sweeps, phantom = row.depth or (None, None)
    return [
        Record(
            name=f"bench_{what}_{key}",
            value=value,
            unit=UNITS[key],
            model=row.model,
            part=row.part,
            length=row.length,
            batch=row.batch,
            sweeps=sweeps,
            phantom=phantom,
            precision="fp8" if row.precision == "fp8" else TYPES[place.dtype],
            commit=place.commit,
            device=place.name,
            software=place.software,
        )
        for key, value in values.items()
        if value is not None
    ]
