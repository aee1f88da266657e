"""Attention in a window against attention with a mask over everything."""

import pytest
import torch
import torch.nn.functional as F

from equilm.ops.attend_local import BLOCK, attend_local
from tests.tolerance import assert_close


@pytest.mark.parametrize("tokens", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("window", [1, 4, BLOCK + 9])
def test_it_is_attention_with_a_mask(tokens: int, window: int) -> None:
    past = window - 1
    shapes = [(2, tokens, 4, 6), (2, past + tokens, 2, 6), (2, past + tokens, 2, 6)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query_BTHP, key_BSHP, value_BSHP = leaves
    own_T = past + torch.arange(tokens)
    # Row 0 has seen nothing before, row 1 two tokens.
    first_BT = torch.stack([torch.full((tokens,), past), torch.full((tokens,), max(0, past - 2))])
    y_BTHP = attend_local(query_BTHP, key_BSHP, value_BSHP, first_BT)

    slot_S = torch.arange(past + tokens)
    mask_BTS = (slot_S <= own_T[:, None]) & (slot_S > own_T[:, None] - window)
    mask_BTS = mask_BTS & (slot_S >= first_BT[..., None])
    want_BTHP = F.scaled_dot_product_attention(
        query_BTHP.transpose(1, 2),
        key_BSHP.transpose(1, 2).repeat_interleave(2, dim=1),
        value_BSHP.transpose(1, 2).repeat_interleave(2, dim=1),
        attn_mask=mask_BTS[:, None],
    ).transpose(1, 2)
    assert_close("attend", y_BTHP, want_BTHP)
    weights_BTHP = torch.randn_like(y_BTHP)
    gradients = []
    for y in (y_BTHP, want_BTHP):
        parts = torch.autograd.grad((y * weights_BTHP).sum(), leaves)
        # As one, because those of queries and keys are zero where a token sees itself alone.
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert_close("gradient", *gradients)


def test_memory_grows_with_the_window_and_not_with_the_square_of_the_length() -> None:
    tokens, window = 4096, 16
    query_BTHP = torch.randn(1, tokens, 1, 2)
    key_BSHP = torch.randn(1, window - 1 + tokens, 1, 2)
    first_BT = torch.zeros(1, tokens, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profiler:
        attend_local(query_BTHP, key_BSHP, key_BSHP, first_BT)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert largest < 8 * tokens * (BLOCK + window) < tokens**2
