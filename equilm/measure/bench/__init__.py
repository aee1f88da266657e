"""How fast: training steps, operations, decoding sweeps, scaling; each tested before it is timed.

Sizes are the published ones on a GPU and small ones on a CPU. Of the files here `rows.py` says what
is timed, `clock.py` how, `floors.py` what a device would allow. Read `planning.py` next.
"""

from collections.abc import Iterator
from itertools import groupby

from equilm.measure.bench.decode_rows import decode_records
from equilm.measure.bench.generation_rows import generation_records
from equilm.measure.bench.mixing_rows import mixing_records
from equilm.measure.bench.op_rows import op_records
from equilm.measure.bench.place import here
from equilm.measure.bench.planning import plan
from equilm.measure.bench.train_rows import train_records
from equilm.record import Record

__all__ = ["bench"]


def bench(what: str, *, preset: str = "", only: str = "") -> Iterator[list[Record]]:
    """Test, then time; yield the Records of a row as soon as it is done.

    Args:
        what: `train`, `ops`, `decode` or `scaling`.
        preset: Only this model, at its rows if it has some, else at a small size.
        only: Only rows whose label contains this; for `scaling`, the label begins with what
            changes: `batch`, `length`, `sweeps` or `phantom`.

    Raises:
        ValueError: For an unknown model, or if no row is left.
        Wrong: If what would be timed does not compute what it should.
    """
    place = here()
    measures = {
        "ops": op_records,
        "mixing": mixing_records,
        "generation": generation_records,
        "decode": decode_records,
    }
    planned = plan(what, preset=preset, only=only, on_gpu=place.device.type == "cuda")
    for name, group in groupby(planned, key=lambda one: one.name):
        measure = measures.get(name, train_records)
        yield from measure([one.row for one in group], place, name)
