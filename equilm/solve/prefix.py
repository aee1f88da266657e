"""Where a walk over tables of next states stands at every step, by logarithmically many look-ups.

Composing tables is associative, so halves of the walk do not wait for each other. It has never
heard of tokens. Read `iterate.py` for what the walk is a guess of.
"""

import torch
from torch import Tensor


def states_before(maps: Tensor, first: Tensor) -> Tensor:
    """q_0 = first, q_{t+1} = maps_t[q_t]; 2 ⌈log2 T⌉ look-ups that wait for each other.

    Args:
        maps: (B, T, Q) int64 in [0, Q), the next state of each state at each step; T ≥ 1.
        first: (B,) int64 in [0, Q).

    Returns:
        (B, T) int64, the state before each step.

    Source: Blelloch, Prefix sums and their applications (1990).
    """
    rows, length, size = maps.shape
    if length == 1:
        return first[:, None]
    if length % 2:
        stay = torch.arange(size, device=maps.device).expand(rows, 1, size)
        maps = torch.cat([maps, stay], dim=1)
    ours, theirs = maps[:, 0::2], maps[:, 1::2]
    before_pairs = states_before(theirs.gather(2, ours), first)
    between = ours.gather(2, before_pairs[..., None])[..., 0]
    return torch.stack([before_pairs, between], dim=2).flatten(1)[:, :length]
