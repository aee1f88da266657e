"""The kernels of flash-linear-attention by our names, if it is there: `pip install 'equilm[fla]'`.

They multiply in half precision, so they serve where a computation is in it; `linear_attention.py`
and `delta.py` are their twins and choose. Each kernel has one tile size instead of trying dozens
when a shape is first seen: that would take minutes, could not be captured, and would let the
clock decide about last digits. Read `delta.py` next.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_KEYS = 256  # of the kernel of the delta rule
# Logarithm of a decay that leaves nothing in float32; sums of −∞ would not be numbers.
LEAST = -40.0
LEAST_VERSION = (0, 6)  # of fla-core, as in pyproject.toml


class _Kernels(NamedTuple):
    gla: Callable[..., tuple[Tensor, Tensor]]
    kda: Callable[..., tuple[Tensor, Tensor]]


def half_type(v_BTX: Tensor) -> torch.dtype | None:
    """Return the type to compute in by these kernels, or `None` if the twin is to compute.

    Args:
        v_BTX: Values (B, T, …): T ≥ 2 on a CUDA device, in half precision or under autocast.
    """
    if not v_BTX.is_cuda or v_BTX.shape[1] == 1 or v_BTX.dtype == torch.float64:
        return None
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else v_BTX.dtype
    return dtype if dtype.itemsize == 2 and installed() else None


@cache
def installed() -> bool:
    """Return whether the library can be imported, and has both kernels; nothing of it is."""
    if any(find_spec(name) is None for name in ("fla", "triton", "einops", "packaging")):
        return False
    from packaging.version import Version

    try:
        return Version(metadata.version("fla-core")).release >= LEAST_VERSION
    except metadata.PackageNotFoundError:  # before there was a core
        return False


def linear_attention_fla(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHP: Tensor,
    log_decay_BTHX: Tensor,
    state_BHNP: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """As `linear_attention`, but the products of queries, keys and values are in `dtype`.

    Source: `chunk_gla` of flash-linear-attention.
    """
    log_decay_BTHN = log_decay_BTHX.float().clamp(min=LEAST).expand(q_BTHN.shape)
    y_BTHP, last_BHNP = _kernels().gla(
        q_BTHN.to(dtype),
        k_BTHN.to(dtype),
        v_BTHP.to(dtype),
        log_decay_BTHN,
        scale=1.0,
        initial_state=state_BHNP,
        output_final_state=True,
    )
    return y_BTHP.float(), last_BHNP


def delta_rule_fla(
    q_BTHN: Tensor,
    k_BTJHN: Tensor,
    v_BTJHP: Tensor,
    beta_BTJH: Tensor,
    log_decay_BTH: Tensor,
    state_BHNP: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """As `delta_rule`, but the products of queries, keys and values are in `dtype`.

    Source: `chunk_kda` of flash-linear-attention. On an H200 with Triton 3.6 its faster
    `chunk_delta_rule` is wrong for heads of 32, differently each time, and
    `chunk_gated_delta_rule` refuses to work.
    """
    steps = k_BTJHN.shape[2]
    log_decay_BTHN = log_decay_BTH.float().clamp(min=LEAST)[..., None].expand(q_BTHN.shape)
    # A token of J steps is J tokens: the first fades, the last asks.
    y_BLHP, last_BHNP = _kernels().kda(
        _among(q_BTHN.to(dtype), steps, steps - 1),
        k_BTJHN.flatten(1, 2).to(dtype),
        v_BTJHP.flatten(1, 2).to(dtype),
        _among(log_decay_BTHN, steps, 0),
        beta_BTJH.flatten(1, 2).float(),
        scale=1.0,
        initial_state=state_BHNP,
        output_final_state=True,
    )
    return y_BLHP[:, steps - 1 :: steps].float(), last_BHNP


def _among(x_BTHX: Tensor, steps: int, place: int) -> Tensor:
    """(B, T, H, X) → (B, T · steps, H, X), zero but at one place of each token."""
    if steps == 1:
        return x_BTHX
    zeros_BTHX = torch.zeros_like(x_BTHX)
    parts = [x_BTHX if step == place else zeros_BTHX for step in range(steps)]
    return torch.stack(parts, dim=2).flatten(1, 2)


@cache
def _kernels() -> _Kernels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.ops.gla import chunk_gla
        from fla.ops.kda import chunk_kda
    _settle()
    return _Kernels(chunk_gla, chunk_kda)


def _settle() -> None:
    """Leave each kernel that these two may call one configuration."""
    from triton.runtime.autotuner import Autotuner

    rooms = tuple(f"fla.ops.{room}." for room in ("common", "gla", "kda", "utils"))
    for name, module in list(sys.modules.items()):
        for kernel in vars(module).values() if name.startswith(rooms) else ():
            while not isinstance(kernel, Autotuner) and hasattr(kernel, "fn"):
                kernel = kernel.fn  # behind heuristics
            if isinstance(kernel, Autotuner) and len(kernel.configs) > 1:
                # Where the library sifts tiles by shape, the smallest fits all.
                size = 16 if kernel.early_config_prune else 64
                kernel.configs = [min(kernel.configs, key=partial(_far, size))]


def _far(size: int, config: Any) -> tuple[int, ...]:
    """How far a configuration is from tiles of that size, 4 warps and 2 stages."""
    tiles = [abs(tile - size) for tile in config.kwargs.values() if isinstance(tile, int)]
    return sum(tiles), abs(config.num_warps - 4), abs(config.num_stages - 2)
