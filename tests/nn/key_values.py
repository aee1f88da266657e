"""Small pieces of which the tests of key-value mixers write their equations; two heads."""

import torch
from torch import Tensor

from equilm.nn.deltanet import DeltaNet
from equilm.nn.key_value import KeyValue
from equilm.nn.rwkv6 import RWKV6

HEADS = 2


def inputs(*shape: int) -> Tensor:
    """Return random numbers that want a gradient."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def heads(part_BI: Tensor) -> Tensor:
    """(B, I) → (B, H, I / H)."""
    return part_BI.unflatten(-1, (HEADS, -1))


def rms(y_BHP: Tensor) -> Tensor:
    """Return y over the root of its mean square."""
    return y_BHP / (y_BHP.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def outer(k_BHN: Tensor, v_BHP: Tensor) -> Tensor:
    """k vᵀ of each head."""
    return torch.einsum("bhn,bhp->bhnp", k_BHN, v_BHP)


def read(q_BHN: Tensor, memory_BHNP: Tensor) -> Tensor:
    """Sᵀ q of each head."""
    return torch.einsum("bhn,bhnp->bhp", q_BHN, memory_BHNP)


def scale(mixer: KeyValue | DeltaNet | RWKV6) -> Tensor:
    """Return the weight of the norm of each head."""
    return mixer.output.norm.get_parameter("weight")
