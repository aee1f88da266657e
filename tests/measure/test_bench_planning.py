"""Which rows a benchmark has; every one can be asked for alone."""

import pytest

from equilm.measure.bench import bench
from equilm.measure.bench.planning import plan
from equilm.measure.bench.rows import Row, config_of


def test_curves_change_one_quantity_at_a_time() -> None:
    curves: dict[str, list[Row]] = {}
    for one in plan("scaling", on_gpu=True):
        curves.setdefault(one.name, []).append(one.row)
    assert [row.batch for row in curves["by_batch"]] == [1, 2, 4, 8, 16, 32]
    assert [row.length for row in curves["by_length"]] == [2**n for n in range(8, 16)]
    assert {row.batch * row.length for row in curves["by_length"]} == {16 * 2048}
    assert {row.depth[1] for row in curves["by_sweeps"] if row.depth} == {1}
    assert [row.depth for row in curves["by_phantom"]] == [(4, 1), (4, 2), (4, 3), (4, 4)]


def test_every_row_can_be_asked_for_alone() -> None:
    for what, count in (("train", 19), ("ops", 122), ("decode", 10)):
        planned = plan(what, on_gpu=True)
        assert len(planned) == count
        for one in planned:
            same = plan(what, only=one.label.replace("×", "x"), on_gpu=True)
            assert one in same and len(same) <= 3
    curves = plan("scaling", only="sweeps", on_gpu=True)
    assert {one.name for one in curves} == {"by_sweeps"} and len(curves) == 7


def test_a_model_is_timed_as_it_is_listed_or_shortly() -> None:
    listed = plan("train", preset="mamba2-1.3b", on_gpu=True)
    assert [one.row.depth for one in listed] == [(4, 1), (4, 1), *[(24, 4)] * 3]
    [implicit] = plan("train", preset="llama-370m", on_gpu=True)
    [explicit] = plan("train", preset="explicit-llama-370m", on_gpu=True)
    assert (implicit.label, explicit.label) == (
        "llama-370m 4+1 1×64",
        "explicit-llama-370m 1×64",
    )
    assert len(plan("decode", preset="llama-130m", on_gpu=False)) == 5
    assert {one.row.batch for one in plan("ops", preset="llama-130m", on_gpu=True)} == {4}
    assert {one.name for one in plan("scaling", preset="explicit-mamba2-130m", on_gpu=True)} == {
        "by_batch",
        "by_length",
    }


def test_a_row_or_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'llama-130m'"):
        next(bench("train", preset="lama-130m"))
    with pytest.raises(
        ValueError, match=r"only: expected part of .*; rows: .*mamba2-130m 24\+4 16"
    ):
        plan("train", only="130n", on_gpu=True)


def test_small_models_stand_in_for_the_published_ones() -> None:
    assert config_of("small-mamba2").equilibrium == config_of("mamba2-130m").equilibrium
    assert config_of("explicit-small-llama").equilibrium is None
    assert not config_of("explicit-small-llama").weight_norm
