"""Time is the median of what was asked for; memory is what is alive at once."""

import time
from functools import partial

import pytest
import torch

from equilm.measure.bench.clock import cache_bytes, head_start, median_ms, peak_gib

CPU = torch.device("cpu")
MIB = 2**18  # float32 numbers


def test_the_median_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turns = 0.0, iter([9.0, 9.0, 3.0, 1.0, 2.0])

    def run() -> None:
        nonlocal now
        now += next(turns)

    def wait() -> None:
        nonlocal now
        now += 100

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert median_ms([run], CPU, repeats=3, before=wait) == pytest.approx(2000)


def test_buffers_are_taken_in_turns() -> None:
    taken: list[int] = []
    runs = [partial(taken.append, number) for number in range(3)]
    median_ms(runs, CPU, repeats=5)
    assert taken == [0, 1, 2, 0, 1, 2, 0]


def test_memory_is_what_is_alive_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(MIB).mul_(2)

    def all_at_once() -> object:
        return [torch.ones(MIB) for _ in range(5)]

    assert peak_gib(one_after_the_other, CPU, held=0) == pytest.approx(1 / 1024)
    assert peak_gib(all_at_once, CPU, held=2**20) == pytest.approx(6 / 1024)


def test_memory_of_views_and_of_what_was_there_is_not_counted() -> None:
    before = torch.ones(MIB)

    def run() -> object:
        return before.view(2, -1)[0], before.add_(1)

    assert peak_gib(run, CPU, held=0) == 0


def test_memory_kept_for_the_backward_pass_is_counted() -> None:
    x = torch.ones(MIB, requires_grad=True)

    def run() -> None:
        y = x
        for _ in range(8):
            y = torch.tanh(y)
        y.sum().backward()
        x.grad = None

    assert 8 <= peak_gib(run, CPU, held=0) * 1024 < 11


def test_a_cpu_needs_no_head_start() -> None:
    assert head_start(CPU) is None
    assert cache_bytes(CPU) > 2**20


@pytest.mark.gpu
def test_launches_are_not_timed_behind_a_head_start() -> None:
    device = torch.device("cuda")
    x = torch.zeros(16, device=device)

    def run() -> None:
        for _ in range(20):
            x.add_(1)

    ahead = median_ms([run], device, repeats=5, before=head_start(device))
    assert 0 < ahead < median_ms([run], device, repeats=5)
