"""Mixers by the length and generated tokens by the batch: what is timed is right, and is drawn."""

import pytest
import torch

from equilm import tree
from equilm.measure.bench import bench, generation_rows, mixing_rows
from equilm.measure.bench.mixing_rows import MIXINGS, Mixing, Sizes, mixing_records
from equilm.measure.bench.operation import Operation
from equilm.measure.bench.place import Place
from equilm.measure.bench.planning import plan
from equilm.measure.bench.rows import Row
from equilm.measure.bench.tested import Wrong
from equilm.nn.linear import prepared
from equilm.ops.selective import selective_scan, selective_scan_chunked
from equilm.record import Record
from equilm.report.mixing import mixer_curves
from tests.measure.models import small

CPU = Place(device=torch.device("cpu"), dtype=torch.float32, name="cpu")
WIDTH = "width 64"


def rows_of(part: str = "") -> list[Row]:
    return [row for row in mixing_rows.mixing_rows(WIDTH, 24, (8, 24)) if part in row.part]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each row once, on the CPU."""
    for module in (mixing_rows, generation_rows):
        monkeypatch.setattr(module, "REPEATS", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("quick")
def test_every_mixer_is_tested_and_timed() -> None:
    rows = rows_of()
    found = list(mixing_records(rows, CPU, "mixing"))
    assert [records[0].part for records in found] == [row.part for row in rows]
    assert {records[0].name for records in found} == {"bench_mixing_time"}
    # The loop has no backward pass here.
    assert len(rows) == 2 * (2 * len(MIXINGS) - 1)


@pytest.mark.usefixtures("quick")
def test_a_slow_pass_is_timed_once_at_the_next_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def timed(operation: Operation, place: Place, *, repeats: int) -> float:
        asked.append(repeats)
        return 1.0 if len(asked) == 1 else 2 * mixing_rows.SLOW_MS

    monkeypatch.setattr(mixing_rows, "REPEATS", 4)
    monkeypatch.setattr(mixing_rows, "forward_ms", timed)
    rows = mixing_rows.mixing_rows(WIDTH, 24, (6, 8, 24))
    chosen = [row for row in rows if row.part == "attention forward"]
    list(mixing_records(chosen, CPU, "mixing"))
    assert asked == [4, 4, 1]


@pytest.mark.usefixtures("quick")
def test_the_loop_is_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(sizes: Sizes) -> Operation:
        def twin(x, dt, b, c, a, skip):  # type: ignore[no-untyped-def]
            return (selective_scan_chunked(x, dt, a, b, c, skip)[0],)

        made = mixing_rows.s6_loop(sizes)
        return Operation(run=made.run, twin=twin, rows=made.rows, weights=made.weights)

    monkeypatch.setitem(MIXINGS, "S6 loop", Mixing(compared))
    assert len(list(mixing_records(rows_of("S6 loop forward"), CPU, "mixing"))) == 2


@pytest.mark.usefixtures("quick")
def test_a_wrong_mixer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x, *rest):  # type: ignore[no-untyped-def]
        return selective_scan(x * 1.01, *rest)

    monkeypatch.setattr(mixing_rows, "selective_scan", wrong)
    with pytest.raises(Wrong, match="S6 scan of 8 tokens"):
        list(mixing_records(rows_of("S6 scan"), CPU, "mixing"))


def test_generated_tokens_are_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(implicit=False)
    monkeypatch.setattr(generation_rows, "TOGETHER", 1)
    tokens_BT = torch.randint(model.vocab_size, (2, 5))
    with torch.no_grad(), prepared(model):
        state = model.init_state(2, 20)
        _, state = model.core(model.embed(tokens_BT[:, :-1]), state)
        last_B1 = tokens_BT[:, -1:].clone()
        for _ in range(4):
            generation_rows._step(model, last_B1, state)
            tokens_BT = torch.cat([tokens_BT, last_B1], dim=1)
        monkeypatch.setattr(generation_rows, "TOGETHER", 3)
        generation_rows._step(model, last_B1, state)
        logits_BTV, _ = model(tokens_BT)
        _, fresh = model.core(model.embed(tokens_BT[:, :-1]), model.init_state(2, 20))
        again_B1 = tokens_BT[:, -1:].clone()
        for _ in range(3):
            z_B1D, fresh = model.core(model.embed(again_B1), fresh)
            again_B1 = model.logits(z_B1D).argmax(-1)
    assert torch.equal(logits_BTV[:, 4:-1].argmax(-1), tokens_BT[:, 5:])
    assert torch.equal(last_B1, again_B1)


def test_more_sequences_than_prompts_repeat_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_rows, "READ", 2)
    model, part = small(implicit=False), "a token after 64"
    row = Row(model="small", batch=3, length=1, part=part)
    with torch.no_grad(), prepared(model):
        tokens_B1, state = generation_rows._prompted(model, row, CPU)
    assert tokens_B1.shape == (3, 1) and torch.equal(tokens_B1[0], tokens_B1[2])
    for leaf in tree.leaves(state):
        assert len(leaf) == 3 and torch.equal(leaf[0], leaf[2])


@pytest.mark.usefixtures("quick")
def test_one_row_of_each_kind_is_asked_for_and_drawn() -> None:
    records: list[Record] = []
    for only in ("FFT convolution forward 8x128", "small-s6 a token after 64 1x1"):
        for found in bench("ops", only=only):
            records += found
    assert {r.model for r in records} == {"width 64", "explicit-small-s6"}
    speed = {r.name: float(str(r.value)) for r in records}
    assert speed["bench_generation_speed"] == pytest.approx(1e3 / speed["bench_generation_time"])
    figure = mixer_curves(records)
    assert figure is not None and figure.name == "mixers-speed"
    assert "1,024 tokens of width 64 on cpu" in figure.caption
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.figure.axes]
    assert titles == ["ms forward", "ms with backward", "generated tokens a second"]
    assert mixer_curves(records[-1:]) is None


def test_a_gpu_measures_half_a_million_tokens() -> None:
    mixing = [one.row for one in plan("ops", on_gpu=True) if one.name == "mixing"]
    assert {row.batch * row.length for row in mixing} == {2**19}
    assert {row.length for row in mixing} == {2**n for n in range(9, 20, 2)}
    longest = {row.part for row in mixing if row.length == 2**19}
    assert "attention forward" in longest and "attention with backward" not in longest
