"""What one GPU more is worth: a step of mamba2-1.3b on one GPU and on all of a torchrun.

    OMP_NUM_THREADS=4 torchrun --standalone --nproc-per-node 2 recipes/two_gpus.py

Weak scaling: 4 × 2,048 random tokens a GPU, in bf16, with the optimizer step. First it checks that
all GPUs together give the losses of one that takes the same rows in pieces. With --smoke a tiny
model does the same on CPUs with gloo.
"""

import gc
import sys
import time
from dataclasses import replace
from typing import Literal

import torch

import equilm
from equilm.measure.bench.build import build, set_depth
from equilm.nn.model import LanguageModel
from equilm.tasks import Batch
from equilm.train import parallel
from equilm.train.gradient import accumulate
from equilm.train.optim import OptimConfig, build_optimizer, clip_gradients
from equilm.train.parallel import Ranks
from equilm.train.recipe import Recipe

SMOKE = "--smoke" in sys.argv
DEVICE: Literal["cpu", "cuda"] = "cpu" if SMOKE else "cuda"
ROWS, LENGTH = 4, 16 if SMOKE else 2048
DEPTHS = ((4, 1), (24, 4))


def main() -> None:
    """Print a line a way of sharing; then by how much the losses differ."""
    ranks = parallel.join(DEVICE)
    alone = Ranks(device=ranks.device)
    ways: list[tuple[str, Ranks, Literal["all", "off"]]] = [
        ("one", alone, "off"),
        ("shards", ranks, "all"),
        ("copies", ranks, "off"),
    ]
    expected: list[float] = []
    times: dict[str, list[float]] = {}
    for name, here, over in ways:
        model = build(_config(), here.device).train()
        parallel.spread(model, here, over)
        if parallel.is_spread(model):
            model.capture = None
        set_depth(model, DEPTHS[0])
        losses, _ = steps(model, here, rows=ROWS * ranks.size, count=3)
        expected = expected or losses
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        times[name] = []
        for depth in DEPTHS:
            set_depth(model, depth)
            _, milliseconds = steps(model, here, rows=ROWS * here.size, count=6)
            times[name].append(sorted(milliseconds[2:])[1])
        if ranks.rank == 0:
            told = zip(DEPTHS, times[name], times["one"], strict=True)
            cells = [f"{s}+{k} {ms:.1f} ms, {one / ms:.1%}" for (s, k), ms, one in told]
            print(f"{name} × {here.size}:", *cells, f"losses differ by {apart:.1e}", sep="  ")
        del model
        gc.collect()
    parallel.leave()


def steps(
    model: LanguageModel, ranks: Ranks, *, rows: int, count: int
) -> tuple[list[float], list[float]]:
    """Losses and milliseconds of steps of `rows` sequences over all ranks, `ROWS` at once."""
    recipe = Recipe(device=DEVICE, rows_at_once=ROWS)
    optimizer = build_optimizer(model, OptimConfig(rate=1e-4, clip=1.0))
    losses, milliseconds = [], []
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        shape = (rows, LENGTH + 1)
        tokens = torch.randint(model.vocab_size, shape, generator=generator)[ranks.rows(rows)]
        tokens = tokens.to(ranks.device)
        batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        _wait()
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        found = accumulate(model, batch, recipe, ranks)
        clip_gradients(model, 1.0)
        optimizer.step()
        _wait()
        milliseconds.append(1e3 * (time.perf_counter() - began))
        losses.append(found.loss.item())
    return losses, milliseconds


def _config() -> equilm.ModelConfig:
    full = equilm.preset("mamba2-1.3b")
    return replace(full, vocab_size=97, width=64, num_layers=2) if SMOKE else full


def _wait() -> None:
    if not SMOKE:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
