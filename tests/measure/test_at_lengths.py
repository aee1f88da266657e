"""Accuracy by length and pace: pieces and rows at once change nothing, and models stay as told."""

import math

import pytest
import torch

from equilm import tree
from equilm.measure import at_lengths
from equilm.measure.at_lengths import AtLengths
from equilm.measure.throughput import Throughput
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.tasks import AssociativeRecall, AssociativeRecallConfig, scores
from tests.nn.build import equilibrium_model, language_model

TASK = AssociativeRecall(AssociativeRecallConfig(pairs=2, vocabulary=10))


@pytest.fixture(params=["mamba2", "attention", "implicit"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "implicit":
        return equilibrium_model("mamba2").eval()
    return language_model(request.param).eval()


def values(records: list[Record]) -> dict[tuple[str, int | None], float]:
    found = {}
    for one in records:
        assert isinstance(one.value, float)
        found[one.name, one.length] = one.value
    return found


def test_values_are_those_of_whole_sequences(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_lengths, "LOGITS", 2 * 7 * model.vocab_size)
    told = {"lengths": (9, 12), "batch_size": 5, "tolerance": 1e-7}
    found = values(list(AtLengths(**told, piece=7).records(model, TASK)))  # type: ignore[arg-type]
    for length in (9, 12):
        batch = TASK.batch(split="test", length=length, batch_size=5, seed=0, index=0)
        with torch.no_grad():
            right = scores(model(batch.tokens_BT)[0], batch)
        nats = float(right.loss_BT.sum()) / 10
        share = int(right.correct_BT.sum()) / 10
        assert found["accuracy", length] == pytest.approx(share)
        assert found["loss", length] == pytest.approx(nats, rel=1e-5)
        assert found["bits", length] == pytest.approx(nats / math.log(2), rel=1e-5)
        last = int(right.correct_BT[:, -10:].sum()) / int(right.counted_BT[:, -10:].sum())
        assert found["accuracy_last10", length] == pytest.approx(last)


def test_a_model_is_left_as_it_was(model: LanguageModel) -> None:
    core = model.core
    before = (core.solve, core.gradient) if isinstance(core, Equilibrium) else None
    weights = [parameter.clone() for parameter in model.parameters()]
    speed = Throughput(batch_size=2, length=8, slots=2, repeats=1)
    found = {one.name: one for one in speed.records(model, TASK)}
    list(AtLengths(lengths=(9,)).records(model, TASK))
    if isinstance(core, Equilibrium):
        assert (core.solve, core.gradient) == before
    assert not model.training
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(found) == {"train_tokens_per_second", "decode_tokens_per_second", "state_bytes"}
    leaves = tree.leaves(model.init_state(1, 8))
    assert found["state_bytes"].value == sum(leaf.numel() * leaf.itemsize for leaf in leaves)
    speeds = [one.value for name, one in found.items() if name != "state_bytes"]
    assert all(isinstance(speed, float) and speed > 0 for speed in speeds)


def test_the_window_is_told_of_implicit_models_alone() -> None:
    measure = AtLengths(lengths=(9, 16), window=12, batch_size=1)
    windows = [r.window for r in measure.records(language_model("mamba2"), TASK)]
    assert set(windows) == {None}
    windows = [r.window for r in measure.records(equilibrium_model("mamba2").eval(), TASK)]
    assert windows == [9] * 4 + [12] * 4


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="lengths: expected one or more integers >= 1"):
        AtLengths(lengths=())
    with pytest.raises(ValueError, match="piece: expected an integer >= 1, got 0"):
        AtLengths(lengths=(3,), piece=0)
