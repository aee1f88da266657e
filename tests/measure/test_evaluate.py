"""What is reported equals a recount by hand, at every length, window and kind of model."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.measure import evaluate as module
from equilm.measure.evaluate import Answers, EvaluationConfig, answer, evaluate, solving
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.anderson import Anderson
from equilm.solve.iterate import Solve, Status
from equilm.tasks import IGNORE, Batch, Task, WordProblem, WordProblemConfig
from tests.measure.models import small

TASK = WordProblem(WordProblemConfig(group="S3"))
CONFIG = EvaluationConfig(
    lengths=(3, 14), windows=(1, 4, 0), batch_size=3, seed=5, tolerance=1e-5, max_steps=60
)
Values = dict[tuple[str, int | None, int | None], Any]


class Told(Task):
    """A task that asks what it is told to."""

    name, vocab_size = "told", 6

    def __init__(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        self.told = Batch(tokens_BT, targets_BT)

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        return self.told


def by_place(records: list[Record]) -> Values:
    return {(r.name, r.length, r.window): r.value for r in records if r.row is None}


def rows_of(records: list[Record], name: str) -> Iterator[Record]:
    return (record for record in records if record.name == name)


def recount(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[float, float, float]:
    """Accuracy, accuracy over the last ten and mean loss, token by token."""
    right: list[list[bool]] = []
    loss: list[float] = []
    for logits_TV, targets_T in zip(logits_BTV.tolist(), targets_BT.tolist(), strict=True):
        right.append([])
        for logits_V, target in zip(logits_TV, targets_T, strict=True):
            right[-1].append(max(range(6), key=lambda v: logits_V[v]) == target)
            loss.append(math.log(sum(map(math.exp, logits_V))) - logits_V[target])
    every = [each for row in right for each in row]
    last = [each for row in right for each in row[-10:]]
    return sum(every) / len(every), sum(last) / len(last), sum(loss) / len(loss)


@pytest.fixture(scope="module", params=["mamba2", "attention", "explicit"])
def measured(request: pytest.FixtureRequest) -> tuple[LanguageModel, list[Record]]:
    """Return a model and what was reported of it."""
    torch.set_num_threads(1)
    explicit = request.param == "explicit"
    model = small(implicit=False) if explicit else small(request.param)
    return model, list(evaluate(model, TASK, CONFIG, about={"model": "m", "seed": 8, "step": 7}))


@torch.no_grad()
def test_scores_equal_a_recount(measured: tuple[LanguageModel, list[Record]]) -> None:
    model, records = measured
    values = by_place(records)
    batch = TASK.batch(split="test", length=14, batch_size=3, seed=5, index=0)
    explicit = not isinstance(model.core, Equilibrium)
    for span in (None,) if explicit else (1, 4, 14):
        with solving(model, Solve(tolerance=1e-5, max_steps=60, window=span)):
            logits_BTV, _ = model(batch.tokens_BT)
        for length in (3, 14):
            expected = recount(logits_BTV[:, :length], batch.targets_BT[:, :length])
            window = None if span is None else min(span, length)
            names = ("accuracy", "accuracy_last10", "loss")
            got = [values[name, length, window] for name in names]
            assert got == pytest.approx(expected, rel=1e-4)
        right_BT = (logits_BTV.argmax(-1) == batch.targets_BT).tolist()
        by_position = [sum(column) / 3 for column in zip(*right_BT, strict=True)]
        assert values["accuracy_by_position", 14, span] == pytest.approx(by_position)


@torch.no_grad()
def test_a_prefix_is_worth_a_shorter_sequence(
    measured: tuple[LanguageModel, list[Record]],
) -> None:
    model, records = measured
    values = by_place(records)
    batch = TASK.batch(split="test", length=14, batch_size=3, seed=5, index=0)
    prefix = Batch(*(part[:, :3] for part in batch))
    for span in (None,) if not isinstance(model.core, Equilibrium) else (1, 3):
        alone = answer(model, prefix, Solve(tolerance=1e-5, max_steps=60, window=span))
        assert values["loss", 3, span] == pytest.approx(
            alone.scores.loss_BT.mean().item(), rel=1e-4
        )
        assert values["accuracy", 3, span] == alone.scores.correct_BT.float().mean().item()
        if alone.solution is not None:
            steps = alone.solution.steps.float().mean().item()
            assert values["evaluations_per_token", 3, span] == pytest.approx(steps)


def test_windows_are_told_and_statuses_add_up(
    measured: tuple[LanguageModel, list[Record]],
) -> None:
    model, records = measured
    implicit = isinstance(model.core, Equilibrium)
    places = {(r.length, r.window) for r in rows_of(records, "accuracy")}
    assert places == ({(3, 1), (3, 3), (14, 1), (14, 4), (14, 14)} if implicit else
                      {(3, None), (14, None)})  # fmt: skip
    values = by_place(records)
    statuses = ("converged", "capped", "cycling")
    found = {name for name, _, _ in values} & {*statuses, "evaluations_per_token"}
    assert len(found) == (4 if implicit else 0)
    for length, window in places if implicit else ():
        assert sum(values[name, length, window] for name in statuses) == pytest.approx(1)
        assert values["converged", length, window] == 1
    assert all(values["tokens_per_second", 14, w] > 0 for length, w in places if length == 14)


def test_the_evaluations_of_every_token_are_there(
    measured: tuple[LanguageModel, list[Record]],
) -> None:
    model, records = measured
    if not isinstance(model.core, Equilibrium):
        assert not list(rows_of(records, "evaluations"))
        return
    values = by_place(records)
    for window in (1, 4, 14):
        rows = [r for r in rows_of(records, "evaluations") if r.window == window]
        assert [r.row for r in rows] == [0, 1, 2]
        steps = [step for r in rows for step in r.value]  # type: ignore[union-attr]
        assert len(steps) == 3 * 14
        assert sum(steps) / len(steps) == pytest.approx(values["evaluations_per_token", 14, window])
    dependent = [values["dependent_sweeps", 14, window] for window in (1, 4, 14)]
    assert dependent[0] > dependent[1] > dependent[2]
    traces = list(rows_of(records, "residual_by_sweep"))
    assert [r.row for r in traces] == [0, 3, 7, 10, 13]
    assert all(r.value[-1] <= 1e-5 < r.value[0] for r in traces)  # type: ignore[index]


def test_every_record_says_of_what_it_is(measured: tuple[LanguageModel, list[Record]]) -> None:
    about = {(r.model, r.seed, r.step, r.task, r.split) for r in measured[1]}
    assert about == {("m", 8, 7, "word_problem S3", "test")}


def test_steps_that_run_out_are_capped() -> None:
    config = replace(CONFIG, windows=(1,), tolerance=0.0, max_steps=1)
    values = by_place(list(evaluate(small(), TASK, config)))
    assert values["capped", 14, 1] == 1 and values["evaluations_per_token", 14, 1] == 1


def test_statuses_are_counted_in_the_prefix_alone() -> None:
    model, config = small(), replace(CONFIG, windows=(0,), max_steps=10)
    values = by_place(list(evaluate(model, TASK, config)))
    batch = TASK.batch(split="test", length=14, batch_size=3, seed=5, index=0)
    solution = answer(model, batch, Solve(tolerance=1e-5, max_steps=10)).solution
    assert solution is not None
    for length in (3, 14):
        found = Counter(each for row in solution.status[:, :length].tolist() for each in row)
        for status in (Status.CONVERGED, Status.CAPPED):
            share = found[status] / (3 * length)
            assert values[status.name.lower(), length, length] == pytest.approx(share)
    assert values["capped", 3, 3] < values["capped", 14, 14] < 1


def test_the_same_window_is_measured_once() -> None:
    assert replace(CONFIG, windows=(0, 14, 400, 1, 1, 4)).spans == (14, 1, 4)
    assert replace(CONFIG, lengths=(3,), windows=(4, 0)).spans == (3,)


def test_the_step_rule_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    assert isinstance(model.core, Equilibrium)
    model.core.solve = own = Solve(solver=Anderson(depth=2), max_steps=3, window=2)
    seen: list[Solve | None] = []

    def spy(model: LanguageModel, batch: Batch, solve: Solve | None, _: object) -> Answers:
        seen.append(solve)
        return answer(model, batch, solve)

    monkeypatch.setattr(module, "answer", spy)
    list(evaluate(model, TASK, CONFIG))
    expected = replace(own, tolerance=1e-5, max_steps=60)
    assert seen == [replace(expected, window=span) for span in (1, 4, 14)]
    assert model.core.solve == own


def test_settings_are_put_back_after_an_error() -> None:
    model = small()
    assert isinstance(model.core, Equilibrium)
    before = model.core.solve
    broken = Told(torch.tensor([[9]]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match=r"tokens: expected ids in \[0, 6\), got 9"):
        list(evaluate(model, broken, CONFIG))
    assert model.core.solve is before


def test_what_is_not_asked_does_not_count() -> None:
    tokens_BT = torch.randint(6, (4, 12), generator=torch.Generator().manual_seed(0))
    targets_BT = tokens_BT.clone()
    targets_BT[:, ::2] = IGNORE
    targets_BT[:, 1] = 2
    model = small(implicit=False)
    config = replace(CONFIG, lengths=(1, 12))
    records = list(evaluate(model, Told(tokens_BT, targets_BT), config))
    values = by_place(records)
    asked = [(row, token) for row in range(4) for token in range(1, 12, 2)]
    with torch.no_grad():
        choice_BT = model(tokens_BT)[0].argmax(-1)
    right = sum(bool(choice_BT[at] == targets_BT[at]) for at in asked)
    assert values["accuracy", 12, None] == pytest.approx(right / len(asked))
    assert values["accuracy", 1, None] == 0 and values["loss", 1, None] == 0
    commonest = Counter(int(targets_BT[at]) for at in asked).most_common(1)[0][1]
    assert values["chance", 12, None] == pytest.approx(commonest / len(asked))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lengths": (16, 0)}, r"lengths: expected one or more integers >= 1, got \(16, 0\)"),
        ({"lengths": ()}, "lengths: "),
        ({"windows": (-1,)}, r"windows: expected one or more integers >= 0, got \(-1,\)"),
        ({"windows": ()}, "windows: "),
        ({"batch_size": 0}, "batch_size: .*got 0"),
        ({"tolerance": -0.1}, "tolerance: expected a number >= 0, got -0.1"),
        ({"max_steps": -1}, "max_steps: .*got -1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        EvaluationConfig(**settings)


@pytest.mark.parametrize("kind", ["mamba2", "attention", "explicit"])
def test_pieces_that_pass_their_state_on_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(implicit=False) if kind == "explicit" else small(kind)
    solve = None if kind == "explicit" else Solve(tolerance=1e-5, max_steps=60, window=1)
    batch = TASK.batch(split="test", length=70, batch_size=2, seed=5, index=0)
    whole = answer(model, batch, solve)
    calls = []
    monkeypatch.setattr(module, "PIECE", 2 * 32)
    model.register_forward_hook(lambda *_: calls.append(1))
    cut = answer(model, batch, solve)
    assert len(calls) == 3
    assert cut.scores.correct_BT.equal(whole.scores.correct_BT)
    torch.testing.assert_close(cut.scores.loss_BT, whole.scores.loss_BT, rtol=1e-3, atol=1e-4)
    if cut.solution is not None and whole.solution is not None:
        assert cut.solution.steps.shape == whole.solution.steps.shape == (2, 70)
        assert (cut.solution.steps - whole.solution.steps).abs().max() <= 1
