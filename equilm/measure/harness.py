"""lm-evaluation-harness: our models as its models, and its results as Records.

    adapter = Adapter(model, Folder(path));  records = run_tasks(adapter, ["lambada_openai"])

Whoever imports this must have `lm_eval`, the extra `eval`. Rows are padded on the right and told so
(`valid_B`), and every token stops by itself, so that an answer depends on nothing it is asked with.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from equilm.decode.generate import generate
from equilm.decode.request import Sampling
from equilm.decode.text import Tokenizer
from equilm.measure.evaluate import solving
from equilm.measure.perplexity import LOGITS_AT_ONCE
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import prepared
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.report.language import ERROR, HARNESS
from equilm.solve.iterate import Solve

Pair = tuple[Any, list[int], list[int]]  # whatever was asked, context, continuation
SHARES = ("acc", "exact_match")  # begin the names of means of zeros and ones
MAX_TOKENS = 256  # generated at most, if a task does not say


class Adapter(TemplateLM):
    """A `LanguageModel` with a tokenizer, as the harness wants it.

    Args:
        model: In evaluation mode.
        tokenizer: Of its texts.
        solve: Tolerance and limit of the solves; by default the model's own.
        window: Tokens solved at once; 1 is sequential, 0 all of them.
        batch_size: Rows at once.
        max_length: Tokens of context; the end of a longer one is kept.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        solve: Solve | None = None,
        window: int = 0,
        batch_size: int = 16,
        max_length: int = 2048,
    ) -> None:
        super().__init__()
        self.model, self.words = model, tokenizer
        self.batch_size, self.max_length = batch_size, max_length
        self.solve = None
        if isinstance(model.core, Equilibrium):
            wanted = solve or model.core.solve
            self.solve = replace(
                model.core.solve,
                tolerance=wanted.tolerance,
                max_steps=wanted.max_steps,
                window=window or None,
            )

    @property
    def eot_token_id(self) -> int:
        """The token before a text: the tokenizer's end, or a line end where it has none."""
        return self.words.stop_tokens[0] if self.words.stop_tokens else self.words.encode("\n")[0]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text; raise ValueError for one that the model does not know."""
        ids = self.words.encode(string)
        if max(ids, default=0) >= self.model.vocab_size:
            raise ValueError(
                f"tokenizer: expected ids below {self.model.vocab_size}, the vocabulary of the "
                f"model, got {max(ids)}"
            )
        return ids

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of whole texts, in windows of the longest context."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.eot_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs: list[Pair] = [(None, *make_disjoint_window(one)) for one in windows]
            found.append(sum(nats for nats, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model goes on with, up to a stop string."""
        texts = [""] * len(requests)
        for place, request in enumerate(requests):
            context, options = request.args
            texts[place] = self._generate(context, options)
        return texts

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with solving(self.model, self.solve), prepared(self.model.core):
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                scored = self._score([requests[place][1:] for place in places])
                for place, score in zip(places, scored, strict=True):
                    found[place] = score
        return found

    def _score(self, pairs: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the likeliest throughout."""
        rows = [(context + ids)[-self.max_length - 1 :] for context, ids in pairs]
        longest = max(len(row) for row in rows) - 1
        device = self.model.embedding.device
        valid_B = torch.tensor([len(row) - 1 for row in rows], device=device)
        padded = [row[:-1] + [0] * (longest - len(row) + 1) for row in rows]
        tokens_BT = torch.tensor(padded, device=device)
        z_BTD, _ = self.model.core(self.model.embed(tokens_BT), None, None, valid_B)
        asked = [min(len(ids), len(row) - 1) for row, (_, ids) in zip(rows, pairs, strict=True)]
        ends = [
            (len(row) - 1 - count, len(row) - 1) for row, count in zip(rows, asked, strict=True)
        ]
        z_ND = torch.cat([z_TD[low:high] for z_TD, (low, high) in zip(z_BTD, ends, strict=True)])
        targets = [one for row, (low, _) in zip(rows, ends, strict=True) for one in row[low + 1 :]]
        nats_N, hits_N = self._judge(z_ND, torch.tensor(targets, dtype=torch.int64, device=device))
        scored = zip(nats_N.split(asked), hits_N.split(asked), strict=True)
        return [(nats.sum().item(), bool(hits.all())) for nats, hits in scored]

    def _judge(self, z_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each target and whether it is the likeliest, on the host."""
        size = max(1, LOGITS_AT_ONCE // self.model.vocab_size)
        nats, hits = [], []
        for some_ND, some_N in zip(z_ND.split(size), targets_N.split(size), strict=True):
            logits_NV = self.model.logits(some_ND)
            nats.append(logits_NV.gather(-1, some_N[:, None])[:, 0] - logits_NV.logsumexp(-1))
            hits.append(logits_NV.argmax(-1) == some_N)
        # The device is asked once for a batch, not once for a row.
        return torch.cat(nats).double().cpu(), torch.cat(hits).cpu()

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        until = options.get("until", [])
        most = int(options.get("max_gen_toks", MAX_TOKENS))
        ids = self.tok_encode(context) or [self.eot_token_id]
        solve = self.solve or Solve()  # an explicit model has nothing to solve
        (answer,) = generate(
            self.model,
            [ids[-self.max_length :]],
            tokenizer=self.words,
            max_tokens=most,
            sampling=_sampling(options),
            stop=[until] if isinstance(until, str) else until,
            tolerance=solve.tolerance,
            max_steps=solve.max_steps,
        )
        return answer.text


def run_tasks(
    adapter: Adapter,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Yield what the tasks measured: `harness_` and the name of the measure.

    Args:
        adapter: The model.
        tasks: Names of tasks.
        include: A folder of task files (.yaml); then the harness's own are not known, and nothing
            is fetched for them.
        limit: Items of each task, the first ones.

    Raises:
        ValueError: For a name that no task has, or no task at all.
    """
    manager = TaskManager(include_path=include, include_defaults=include is None)
    known = manager.all_tasks
    for name in tasks:
        if name not in known:
            where = f"one of {include}: {', '.join(sorted(known)[:12])}" if include else "a task"
            raise ValueError(f"harness: expected {where}, got {name!r}")
    if not tasks:
        raise ValueError("harness: expected the name of a task, got none")
    found = simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    for task, measures in found["results"].items():
        items = found["n-samples"][task]["effective"] if task in found["n-samples"] else 0
        yield from _records(task, measures, items)


def _records(task: str, measures: Mapping[str, Any], items: int) -> Iterator[Record]:
    for key, value in measures.items():
        if not isinstance(value, float | int) or "," not in key or "_stderr," in key:
            continue
        measure, kept = key.split(",", 1)
        name = HARNESS + (measure if kept == "none" else f"{measure} ({kept})")
        is_share = measure.startswith(SHARES)
        unit = "share" if is_share else "1"
        yield Record(name=name, value=float(value), unit=unit, task=task, batch=items)
        if is_share and items > 1:
            # The standard error of a mean of zeros and ones.
            error = math.sqrt(max(0.0, value * (1 - value)) / (items - 1))
            yield Record(name=name + ERROR, value=error, unit=unit, task=task, batch=items)


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """Greedy, unless a task asks for something else."""
    temperature = float(options.get("temperature", 0.0))
    if not options.get("do_sample", temperature > 0):
        return Sampling(temperature=0.0)
    return Sampling(
        temperature=temperature or 1.0,
        top_k=int(options.get("top_k", 0)),
        top_p=float(options.get("top_p", 1.0)),
    )
