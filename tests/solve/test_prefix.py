"""A parallel walk stands where a step-by-step one stands."""

import pytest
import torch
from torch import Tensor

from equilm.solve.prefix import states_before


def one_by_one(maps: Tensor, first: Tensor) -> Tensor:
    state, found = first, []
    for t in range(maps.shape[1]):
        found.append(state)
        state = maps[:, t].gather(1, state[:, None])[:, 0]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 101])
def test_the_walk_is_that_of_one_step_after_the_other(length: int) -> None:
    # Permutations, so that no walk forgets where it began.
    maps = torch.rand(3, length, 5).argsort(dim=-1)
    first = torch.tensor([0, 4, 2])
    found = states_before(maps, first)
    assert torch.equal(found, one_by_one(maps, first))
    if length > 1:
        maps[0, 0, 0] = (maps[0, 0, 0] + 1) % 5
        assert not torch.equal(states_before(maps, first), found)
