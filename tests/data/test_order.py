import numpy as np
import pytest

from equilm.data.order import Numbers, Turns, keys_of, permute


def all_of(size: int) -> Numbers:
    return np.arange(size, dtype=np.uint64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_comes_once(size: int, seed: int) -> None:
    got = permute(all_of(size), size, keys_of(seed))
    assert sorted(got.tolist()) == list(range(size))


def test_an_order_is_the_same_everywhere_and_for_any_part_of_it() -> None:
    keys = keys_of("windows", 0, 0, 16, 0)
    whole = permute(all_of(1000), 1000, keys)
    part = permute(np.array([999, 0, 500], dtype=np.uint64), 1000, keys)
    assert part.tolist() == whole[[999, 0, 500]].tolist()
    # Written down on one machine; another order would break the resumption of old runs.
    assert whole[:5].tolist() == [422, 921, 381, 818, 396]


def test_another_seed_is_another_order() -> None:
    one, other = (permute(all_of(500), 500, keys_of(seed)) for seed in (0, 1))
    assert (one == other).mean() < 0.02


def test_an_order_looks_random() -> None:
    size = 20_000
    got = permute(all_of(size), size, keys_of(3)).astype(np.float64)
    # The standard error of a correlation of 20,000 pairs is 0.007.
    assert abs(np.corrcoef(got[:-1], got[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(got, np.arange(size))[0, 1]) < 0.03


def test_a_billion_numbers_need_no_memory() -> None:
    got = permute(all_of(10_000), 10**9, keys_of(0))
    assert len(set(got.tolist())) == 10_000
    assert got.max() < 10**9
    assert got.max() > 9 * 10**8


@pytest.mark.parametrize("weights", [(1,), (0.7, 0.3), (1, 2, 3), (0.125, 0.8, 0.075), (5, 5)])
def test_shares_are_exact_and_no_turn_is_left_out(weights: tuple[float, ...]) -> None:
    turns = Turns(weights)
    cycle = int(turns.counts.sum())
    source, turn = turns.at(all_of(3 * cycle))
    for index, weight in enumerate(weights):
        mine = turn[source == index]
        assert mine.tolist() == list(range(len(mine)))
        assert len(mine) / (3 * cycle) == pytest.approx(weight / sum(weights), abs=1e-12)
        # Not only in the long run: never more than a turn of each other source off.
        so_far = np.cumsum(source == index)
        due = np.arange(1, 3 * cycle + 1) * weight / sum(weights)
        assert np.abs(so_far - due).max() <= len(weights)


@pytest.mark.parametrize("weights", [(), (0.0,), (1, -1), (float("nan"),), (1, 1e-9)])
def test_weights_that_are_none(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights: expected"):
        Turns(weights)
