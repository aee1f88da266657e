"""How mixers of one width grow with the length, the number of tokens alike: no model around them.

Scans of S6 and Mamba2, causal attention, and the convolution by FFT of time-invariant models; each
is held against its plain twin at the lengths that the twin can do. Read `generation_rows.py` next.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.measure.bench.op_rows import BOTH, FORWARD
from equilm.measure.bench.operation import Operation, Outputs, both_ms, check, forward_ms, works
from equilm.measure.bench.place import Place, records_of
from equilm.measure.bench.rows import Row
from equilm.ops.attend import attend
from equilm.ops.fftconv import fft_conv
from equilm.ops.scan import ssd, ssd_chunked
from equilm.ops.selective import selective_scan, selective_scan_chunked
from equilm.record import Record

REPEATS = 5
SLOW_MS = 200.0  # a pass that takes as long is timed once: the longest attention takes seconds
TESTED = 2048  # tokens up to which the twins, in float64, fit
HEAD = 64  # P of heads, in attention and in Mamba2
S6_STATE, MAMBA2_STATE = 16, 128  # N, as published


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Random tensors of a shape, the same each time."""

    batch: int
    length: int
    width: int
    place: Place
    generator: torch.Generator

    def wide(self, *shape: int) -> Tensor:
        """Normal numbers in float32."""
        return torch.randn(shape, generator=self.generator, device=self.place.device)

    def tokens(self, *shape: int) -> Tensor:
        """(B, T, …) in the type of products."""
        return self.wide(self.batch, self.length, *shape).to(self.place.dtype)


def s6_scan(sizes: Sizes) -> Operation:
    """The selective scan of S6."""

    def call(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Outputs]:
        def run(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, skip: Tensor) -> Outputs:
            return (function(x, dt, a, b, c, skip)[0],)

        return run

    width, size = sizes.width, S6_STATE
    dt_BTI = F.softplus(sizes.wide(sizes.batch, sizes.length, width) - 3)
    a_IN = -(1 + torch.arange(size, device=dt_BTI.device)).float().expand(width, size).contiguous()
    return Operation(
        run=call(selective_scan),
        twin=call(selective_scan_chunked),
        rows=(sizes.tokens(width), dt_BTI, sizes.tokens(size), sizes.tokens(size)),
        weights=(a_IN, sizes.wide(width)),
        flops=6.0 * dt_BTI.numel() * size,
    )


def s6_loop(sizes: Sizes) -> Operation:
    """The same in PyTorch, one token after the other."""

    def run(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, skip: Tensor) -> Outputs:
        state_BIN, y = x.new_zeros(len(x), *a.shape, dtype=dt.dtype), []
        for t in range(x.shape[1]):
            update_BIN = (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            state_BIN = torch.addcmul(update_BIN, torch.exp(dt[:, t, :, None] * a), state_BIN)
            y.append((state_BIN * c[:, t, None]).sum(-1))
        return (torch.stack(y, dim=1) + skip * x,)

    scan = s6_scan(sizes)
    return Operation(run=run, rows=scan.rows, weights=scan.weights, flops=scan.flops)


def mamba2_scan(sizes: Sizes) -> Operation:
    """The scan of Mamba2, in one group."""

    def call(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Outputs]:
        def run(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, skip: Tensor) -> Outputs:
            return (function(x, dt, a, b, c, skip)[0],)

        return run

    heads, size = sizes.width // HEAD, MAMBA2_STATE
    dt_BTH = F.softplus(sizes.wide(sizes.batch, sizes.length, heads) - 3)
    directions = sizes.tokens(1, size), sizes.tokens(1, size)
    return Operation(
        run=call(ssd),
        twin=call(ssd_chunked),
        rows=(sizes.tokens(heads, HEAD), dt_BTH, *directions),
        weights=(-1 - 15 * sizes.wide(heads).sigmoid(), sizes.wide(heads)),
        flops=6.0 * dt_BTH.numel() * HEAD * size,
    )


def attention(sizes: Sizes) -> Operation:
    """Causal attention: PyTorch's flash attention on a GPU."""

    def run(*parts_BTHP: Tensor) -> Outputs:
        return (attend(*parts_BTHP),)

    rows = tuple(sizes.tokens(sizes.width // HEAD, HEAD) for _ in range(3))
    return Operation(run=run, rows=rows, flops=2.0 * sizes.length * rows[0].numel())


def fft_convolution(sizes: Sizes) -> Operation:
    """A causal convolution as long as the sequence, in float32 as FFTs are."""

    def run(u_BTI: Tensor, kernel_IT: Tensor) -> Outputs:
        wide = torch.promote_types(u_BTI.dtype, torch.float32)
        return (fft_conv(u_BTI.to(wide), kernel_IT).to(u_BTI.dtype),)

    u_BTI = sizes.tokens(sizes.width)
    kernel_IT = sizes.wide(sizes.width, sizes.length) / sizes.length**0.5
    # Of real numbers, there and back, twice as long.
    flops = 2 * 2.5 * 2 * u_BTI.numel() * math.log2(2 * sizes.length)
    return Operation(run=run, rows=(u_BTI,), weights=(kernel_IT,), flops=flops)


class Mixing(NamedTuple):
    """An operation, and the lengths up to which it is timed; 0 leaves a pass out."""

    make: Callable[[Sizes], Operation]
    forward_to: int = 2**19
    backward_to: int = 2**19
    has_twin: bool = True


MIXINGS = {
    "S6 scan": Mixing(s6_scan),
    "Mamba2 scan": Mixing(mamba2_scan),
    "attention": Mixing(attention, backward_to=2**17),
    "FFT convolution": Mixing(fft_convolution),
    "S6 loop": Mixing(s6_loop, forward_to=2048, backward_to=0, has_twin=False),
}
WIDTHS = {"width 1024": 1024, "width 64": 64}


def mixing_rows(model: str, tokens: int, lengths: Iterable[int]) -> tuple[Row, ...]:
    """The rows of all operations of a width, a key of `WIDTHS`, as many tokens in each."""
    return tuple(
        Row(model=model, batch=tokens // length, length=length, part=f"{part} {passes}")
        for part, mixing in MIXINGS.items()
        for length in lengths
        for passes, limit in ((FORWARD, mixing.forward_to), (BOTH, mixing.backward_to))
        if length <= limit
    )


def mixing_records(rows: Iterable[Row], place: Place, name: str) -> Iterator[list[Record]]:
    """Test each operation at a length, then time it; yield the Records of a row at a time.

    Args:
        rows: As `mixing_rows` makes them.
        place: Where and in which type.
        name: Of the benchmark, in the names of the Records.

    Raises:
        Wrong: If an output or a gradient is not that of the plain twin.
    """
    tested = set()
    slow: dict[tuple[str, str], bool] = {}  # at the length before
    for row in rows:
        passes = FORWARD if row.part.endswith(FORWARD) else BOTH
        part = row.part.removesuffix(passes).rstrip()
        generator = torch.Generator(place.device).manual_seed(0)
        sizes = Sizes(
            batch=row.batch,
            length=row.length,
            width=WIDTHS[row.model],
            place=place,
            generator=generator,
        )
        operation = MIXINGS[part].make(sizes)
        if MIXINGS[part].has_twin and row.length <= TESTED and (part, row.length) not in tested:
            check(f"{part} of {row.length} tokens", operation, place)
            tested.add((part, row.length))
        forward, both = works(operation, place)
        timed, work = (forward_ms, forward) if passes == FORWARD else (both_ms, both)
        repeats = 1 if slow.get((part, passes)) else REPEATS
        ms = timed(operation, place, repeats=repeats)
        slow[part, passes] = ms > SLOW_MS
        yield records_of(name, row, place, ms=ms, work=work)
