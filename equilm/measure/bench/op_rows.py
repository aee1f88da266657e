"""Operations, forward and forward with backward: tested, then timed without their launches.

Read `decode_rows.py` next.
"""

from collections.abc import Iterable, Iterator, Mapping

from equilm.measure.bench.inputs import draw
from equilm.measure.bench.operation import both_ms, check, forward_ms, works
from equilm.measure.bench.operations import operations_of
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import Row, config_of
from equilm.record import Record

FORWARD, BOTH = "forward", "with backward"


def op_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test each operation, then time it; yield the Records of a row at a time.

    Args:
        rows: Operations, as `op_rows` makes them.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If an output or a gradient is not that of the plain twin.
    """
    tested = set()
    for row in rows:
        passes = FORWARD if row.part.endswith(FORWARD) else BOTH
        part = row.part.removesuffix(passes).rstrip()
        inputs = draw(row, place)
        operation = operations_of(inputs.config)[part](inputs)
        if (row.model, part) not in tested:
            check(f"{part} of {row.model}", operation, place)
            tested.add((row.model, part))
        forward, both = works(operation, place)
        if passes == FORWARD:
            ms, work = forward_ms(operation, place), forward
        else:
            ms, work = both_ms(operation, place), both
        yield records_of(name, row, place, ms=ms, work=work)


def op_rows(shapes: Mapping[str, tuple[int, int]]) -> tuple[Row, ...]:
    """The rows of all operations of these models, each at its (batch, length)."""
    return tuple(
        Row(model=model, batch=batch, length=length, part=f"{part} {passes}")
        for model, (batch, length) in shapes.items()
        for part in operations_of(config_of(model))
        for passes in (FORWARD, BOTH)
    )
