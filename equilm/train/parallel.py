"""Many processes, one run: who is where, which rows are whose, and how parameters are spread.

    torchrun --standalone --nproc-per-node 2 -m equilm train recipe.toml --resume

Applied from outside: the model stays single-device code. No collective lies inside a solve, for
ranks may take different numbers of sweeps: a model is one unit of FSDP2, gathered once a step.
 torchrun's environment is all that is read. Read `gradient.py` next.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from equilm.nn.model import LanguageModel
from equilm.train.meeting import agree
from equilm.train.recipe import use_device

Over = Literal["all", "node", "off"]
BUCKET = 2**26  # gradients that one all-reduce sums


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a run, and which of them this is; one alone is the ordinary case."""

    device: torch.device
    rank: int = 0
    size: int = 1
    per_node: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which rows of a global batch of `count` are this rank's.

        Raises:
            ValueError: If the ranks cannot have equally many.
        """
        if count % self.size:
            raise ValueError(
                f"batch_size: expected a multiple of the {self.size} processes, got {count}"
            )
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the sum over all ranks of each scalar, in its own type."""
        if self.size == 1:
            return parts
        # Exact in float64: counts below 2⁵³ and float32 alike.
        packed = torch.stack([part.detach().double() for part in parts])
        dist.all_reduce(packed)
        return tuple(one.to(part.dtype) for one, part in zip(packed, parts, strict=True))

    def wait(self) -> None:
        """Return when every rank has come here."""
        # Reading a sum of all waits for all, on any device.
        self.total(torch.zeros((), device=self.device))[0].item()


def join(device: str, *, threads: int | None = None) -> Ranks:
    """Join the processes that torchrun has started, if it has.

    Args:
        device: As `use_device`; each process of a node takes a GPU of its own.
        threads: As `use_device`.

    Raises:
        ValueError: For `cuda` without a GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=use_device(device, threads=threads))
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(local)
    used = use_device(device, threads=threads)
    if not dist.is_initialized():
        # Checkpoints are written beside the training, which takes a backend for the CPU as well.
        backend = "cpu:gloo,cuda:nccl" if used.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(rank, size), rank=rank, world_size=size)
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    return Ranks(device=used, rank=rank, size=size, per_node=per_node)


def leave() -> None:
    """Leave the processes that were joined, if any were."""
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(model: LanguageModel, ranks: Ranks, over: Over) -> None:
    """Spread the parameters, their gradients and the optimizer's moments over the ranks, in place.

    Args:
        model: Whole, with the same values on every rank.
        ranks: Alone, a rank keeps all.
        over: `all` ranks, those of a `node` with a copy in every node, or `off`: a copy in every
            rank.

    Raises:
        ValueError: If the nodes have different numbers of ranks.
    """
    if ranks.size == 1 or over == "off":
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    shape, names = (ranks.size,), ("shard",)
    if over == "node":
        if ranks.size % ranks.per_node:
            raise ValueError(
                f"shard: expected nodes of equally many processes, got {ranks.per_node} of "
                f"{ranks.size} in one"
            )
        shape = (ranks.size // ranks.per_node, ranks.per_node)  # type: ignore[assignment]
        names = ("replicate", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in ("init_state", "loss", "loss_from"):
        register_fsdp_forward_method(model, method)


def is_spread(model: nn.Module) -> bool:
    """Return whether `spread` has spread its parameters."""
    if not dist.is_initialized():
        return False  # without a second spent on importing what tells
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def laid_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, the same on every rank, where and as `like` lies."""
    whole = whole.to(like.device)
    if dist.is_initialized():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(like, DTensor):
            return distribute_tensor(whole, like.device_mesh, like.placements)
    return whole


def gathered(part: Tensor) -> Tensor:
    """Return a tensor whole that may be spread; all ranks call it."""
    if dist.is_initialized():
        from torch.distributed.tensor import DTensor

        if isinstance(part, DTensor):
            return part.full_tensor()
    return part


def loss_factor(model: nn.Module, ranks: Ranks) -> int:
    """Return what a rank's share of the loss is multiplied by, for gradients to be sums."""
    return ranks.size if is_spread(model) else 1  # FSDP takes a mean over ranks


def expect_more(model: nn.Module, more: bool) -> None:
    """Tell a spread model whether more pieces of this step follow; the last one reduces."""
    if is_spread(model):
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(not more)
        model.set_reshard_after_backward(not more)


def reduce_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Sum the gradients of copies over all ranks, in place; a spread model has done so itself."""
    if ranks.size == 1 or is_spread(model):
        return
    gradients = [leaf.grad for leaf in model.parameters() if leaf.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        summed = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, summed, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(one.numel() for one in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _store(rank: int, size: int) -> PrefixStore:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not agent,
    )
    # What a dead attempt left in the store would make this one's gloo fail.
    return PrefixStore(agree(store, rank, size), store)
