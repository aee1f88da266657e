"""Rows with padding anywhere, as `transformers` gives them: what is no padding goes to the front.

Our models know rows that are padded on the right (`valid_B`). Read `modeling.py` next.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where each token of a row goes; without padding nothing moves."""

    order_BT: Tensor | None = None
    valid_B: Tensor | None = None

    def front(self, x_BTD: Tensor) -> Tensor:
        """Return the rows with their padding behind their tokens, which keep their order."""
        return x_BTD if self.order_BT is None else x_BTD.gather(1, _like(self.order_BT, x_BTD))

    def back(self, y_BTD: Tensor) -> Tensor:
        """Return what was moved to the front where it came from, and zeros at padding."""
        if self.order_BT is None or self.valid_B is None:
            return y_BTD
        tokens_T = torch.arange(y_BTD.shape[1], device=y_BTD.device)
        is_token_BT = tokens_T < self.valid_B.to(y_BTD.device)[:, None]
        y_BTD = y_BTD.masked_fill(~is_token_BT[..., None], 0.0)
        return torch.zeros_like(y_BTD).scatter(1, _like(self.order_BT, y_BTD), y_BTD)


def pack(mask_BS: Tensor | None, rows: int, tokens: int, seen: int) -> Packing:
    """Read an attention mask; waits for the device.

    Args:
        mask_BS: (B, seen + T), 0 at padding; `None` means that there is none.
        rows: B.
        tokens: T, of this call.
        seen: Tokens of earlier calls, whose padding was read then.

    Raises:
        ValueError: For a mask of another shape.
    """
    if mask_BS is None:
        return Packing()
    if tuple(mask_BS.shape) != (rows, seen + tokens):
        raise ValueError(
            f"attention_mask: expected shape {(rows, seen + tokens)}, got {tuple(mask_BS.shape)}"
        )
    is_token_BT = mask_BS[:, seen:] != 0
    if bool(is_token_BT.all()):
        return Packing()
    order_BT = torch.argsort(~is_token_BT, dim=1, stable=True)
    return Packing(order_BT, is_token_BT.sum(dim=1))


def _like(order_BT: Tensor, x_BTD: Tensor) -> Tensor:
    return order_BT.to(x_BTD.device)[..., None].expand_as(x_BTD)
