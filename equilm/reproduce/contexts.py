"""Figure 4: language models on contexts longer than any they were trained on. Read `plan.py` first.

The four models are those of `recipes/lm-small-*.toml`, of 30M parameters where the published ones
have up to 1.3B; a test keeps both the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from equilm.config import ConfigError
from equilm.decode.text import Ids
from equilm.measure.documents import cut, read_documents
from equilm.measure.evaluate import EvaluationConfig
from equilm.measure.perplexity import evaluate_text
from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.record import Record
from equilm.report import extrapolation, language
from equilm.reproduce.figures import Settings
from equilm.reproduce.plan import Figure, Run
from equilm.solve import Solve
from equilm.tasks import Task, TextConfig
from equilm.train.optim import OptimConfig
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths, Phase, RateSchedule

LENGTH, LENGTH_QUICK = 512, 64


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Perplexity by length and position on documents of a prepared folder's test split."""

    text: Path
    settings: EvaluationConfig

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield what `equilm evaluate --text` does, without bytes."""
        device, longest = model.embedding.device, max(self.settings.lengths)
        tokens_BT = _rows(self.text, longest + 1, self.settings.batch_size)
        with self.settings.computing(device):
            found = evaluate_text(model, tokens_BT, self.settings, num_bytes=lambda _: None)
            for one in found:
                yield replace(one, task=task.name, split="test")


def fig4(settings: Settings) -> Figure:
    """Perplexity on contexts up to 16 times as long as in training.

    Raises:
        ConfigError: Without a folder of tokens.
    """
    if settings.data is None:
        raise ConfigError("data: fig4 expected a folder that `equilm data prepare` wrote")
    quick, text = settings.quick, settings.data.resolve()
    length = LENGTH_QUICK if quick else LENGTH
    tested = EvaluationConfig(
        lengths=tuple(length * times for times in (1, 2, 4, 8, 16)),
        windows=(length // 2, 0),
        batch_size=8 if quick else 16,
        tolerance=0.02,
        precision="bf16",
    )
    runs = [
        Run(
            name=f"implicit-{family}" if implicit else family,
            group="text",
            recipe=recipe((str(text),), llama=family == "llama", implicit=implicit, quick=quick),
            measures=(Contexts(text=text, settings=tested),),
        )
        for family in ("mamba2", "llama")
        for implicit in (False, True)
    ]
    return Figure(
        name="fig4",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(extrapolation.perplexity_by_length, language.perplexity_by_position),
        tables=(language.perplexity_table,),
    )


def recipe(sources: tuple[str, ...], *, llama: bool, implicit: bool, quick: bool = False) -> Recipe:
    """Return the training run of one of the four.

    Args:
        sources: Prepared folders.
        llama: Whether attention and an MLP mix, or Mamba2.
        implicit: Whether the stack is iterated to its fixed point.
        quick: Whether it is to take a minute or two of a CPU.
    """
    mamba2 = Mamba2Config(head_width=32, state_size=16) if quick else Mamba2Config()
    used = Solve(tolerance=0.05, max_steps=64, window=256)
    model = ModelConfig(
        width=64 if quick else 640,
        num_layers=(1 if quick else 5) if llama else (2 if quick else 9),
        mixer=AttentionConfig(heads=2 if quick else 10) if llama else mamba2,
        mlp_hidden=(192 if quick else 1728) if llama else None,
        weight_norm=implicit,
        equilibrium=EquilibriumConfig(solve=used) if implicit else None,
    )
    bounded = Phase(max_steps=4, phantom_steps=1)
    free = Phase(share=0.8, max_steps=32 if llama else 24, phantom_steps=4)
    return Recipe(
        model=model,
        task=TextConfig(sources=sources, boundaries="carry"),
        steps=160 if quick else 512,
        batch_size=8 if quick else 64,
        curriculum=FixedLengths(lengths=(LENGTH_QUICK if quick else LENGTH,)),
        phases=(bounded, free) if implicit else Recipe.phases,
        optim=OptimConfig(
            rate=3e-3 if quick else 2e-3,
            weight_decay=0.1,
            clip=1.0,
            schedule=RateSchedule(shape="cosine", warmup=0.05, final=0.1),
        ),
        threads=1 if quick else None,
        log_every=4,
        checkpoint_every=256,
        keep_checkpoints=4,
    )


@lru_cache(maxsize=1)
def _rows(text: Path, length: int, rows: int) -> Tensor:
    """The same rows for every model."""
    documents = list(read_documents([text]))
    return cut(documents, Ids(), length=length, rows=rows, seed=0)
