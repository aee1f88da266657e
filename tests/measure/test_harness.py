"""The harness scores our models as their logits do, whatever else is in the batch; offline."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from equilm import record
from equilm.decode.generate import generate
from equilm.decode.request import Sampling
from equilm.decode.text import Bytes
from equilm.measure.evaluate import EvaluationConfig
from equilm.measure.language import evaluate_folder
from equilm.measure.language_config import LanguageConfig
from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.folder import save_model
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.report.language import language_tables
from equilm.report.select import number
from equilm.solve import Solve

# Imported for the first time, it warns of its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("lm_eval", reason="needs the extra eval")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WORD = """
task: tiny_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_target: " {{{{choices[gold]}}}}"
metric_list: [{{metric: perplexity}}, {{metric: acc}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{query}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def byte_model(mixer: str, *, implicit: bool = True) -> LanguageModel:
    config = ModelConfig(
        vocab_size=256,
        width=16,
        num_layers=1,
        mixer=Mamba2Config(head_width=8, state_size=4)
        if mixer == "mamba2"
        else AttentionConfig(heads=2),
        equilibrium=EquilibriumConfig() if implicit else None,
    )
    model = LanguageModel(config, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.embedding.mul_(20)
        for name, parameter in model.core.named_parameters():
            # F hardly depends on z, so that every token has one fixed point.
            if implicit and name.endswith(("in_proj.weight", "wq.weight", "wk.weight")):
                parameter.mul_(0.1)
    return model.eval()


def asked(*pairs: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=pair) for pair in pairs]


def by_hand(model: LanguageModel, context: str, continuation: str) -> tuple[float, bool]:
    row = torch.tensor([list((context + continuation).encode())])
    with torch.no_grad():
        log_TV = model(row[:, :-1])[0][0].log_softmax(-1)
    size = len(continuation.encode())
    log_TV, ids = log_TV[-size:], row[0, -size:]
    nats = log_TV.gather(-1, ids[:, None]).sum().item()
    return nats, bool((log_TV.argmax(-1) == ids).all())


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_scores_are_those_of_each_alone(mixer: str, window: int) -> None:
    from equilm.measure.harness import Adapter

    model = byte_model(mixer)
    strict = Solve(tolerance=1e-6, max_steps=200)
    pairs = [("To be", " or not"), ("a", "b"), ("Long context,", " short"), ("é", "è" * 9)]
    adapter = Adapter(model, Bytes(), solve=strict, window=window, batch_size=3)
    found = adapter.loglikelihood(asked(*pairs), disable_tqdm=True)
    model.core.solve = strict  # type: ignore[assignment]
    for pair, (nats, greedy) in zip(pairs, found, strict=True):
        expected, likeliest = by_hand(model, *pair)
        assert nats == pytest.approx(expected, abs=2e-3)
        assert greedy == likeliest


def test_a_context_that_is_too_long_keeps_its_end() -> None:
    from equilm.measure.harness import Adapter

    model = byte_model("mamba2", implicit=False)
    adapter = Adapter(model, Bytes(), max_length=8)
    ((nats, _),) = adapter.loglikelihood(asked(("0123456789", "abc")), disable_tqdm=True)
    assert nats == pytest.approx(by_hand(model, "456789", "abc")[0], abs=1e-4)
    # A space between the two belongs to the continuation.
    found = adapter.loglikelihood(asked(("a ", "b"), ("a", " b")), disable_tqdm=True)
    assert found[0] == found[1]
    # Without a context a line end stands before the text.
    ((nats, _),) = adapter.loglikelihood(asked(("", "abc")), disable_tqdm=True)
    assert nats == pytest.approx(by_hand(model, "\n", "abc")[0], abs=1e-4)


def test_whole_texts_are_told_in_windows_that_cover_each_token_once() -> None:
    from equilm.measure.harness import Adapter

    model, text = byte_model("mamba2", implicit=False), "Call me Ishmael."
    (whole,) = Adapter(model, Bytes()).loglikelihood_rolling(asked((text,)))
    assert whole == pytest.approx(by_hand(model, "\n", text)[0], abs=1e-4)
    (pieces,) = Adapter(model, Bytes(), max_length=10).loglikelihood_rolling(asked((text,)))
    first, last = by_hand(model, "\n", text[:10])[0], by_hand(model, text[5:10], text[10:])[0]
    assert pieces == pytest.approx(first + last, abs=1e-3)


def test_answers_are_those_of_generate_up_to_a_stop_string() -> None:
    from equilm.measure.harness import Adapter

    model = byte_model("mamba2")
    adapter = Adapter(model, Bytes(), solve=Solve(tolerance=0.01, max_steps=64))
    told = generate(
        model, ["Once"], tokenizer=Bytes(), max_tokens=12, sampling=Sampling(temperature=0.0)
    )[0].text
    options = {"until": [], "max_gen_toks": 12}
    assert adapter.generate_until(asked(("Once", options))) == [told]
    stop = told[6:8]
    (cut,) = adapter.generate_until(asked(("Once", {"until": stop, "max_gen_toks": 12})))
    assert cut == told[: told.index(stop)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    items = [
        {"query": f"Item {i}:", "choices": ["yes", "no thanks", "perhaps"], "gold": i % 3}
        for i in range(20)
    ]
    data, folder = tmp_path / "items.jsonl", tmp_path / "tasks"
    data.write_text("\n".join(map(json.dumps, items)))
    folder.mkdir()
    for name, text in {"choice": CHOICE, "word": WORD, "rolling": ROLLING}.items():
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def test_tasks_of_a_folder_become_records(tmp_path: Path, tasks: Path) -> None:
    model = byte_model("mamba2", implicit=False)
    save_model(model, tmp_path / "tiny")
    settings = EvaluationConfig(lengths=(64,), windows=(0,), batch_size=8)
    names = "tiny_choice,tiny_word,tiny_rolling"
    language = LanguageConfig(harness=names, include=tasks, limit=12, tokenizer="bytes")
    found = evaluate_folder(tmp_path / "tiny", settings, language)
    assert record.read(tmp_path / "tiny" / "records.jsonl") == found
    value = {(r.task, r.name): number(r) for r in found}
    assert {r.batch for r in found} == {12} and {r.model for r in found} == {"tiny"}
    right = 0
    for i in range(12):
        scores = [
            by_hand(model, f"Item {i}:", f" {one}")[0] for one in ("yes", "no thanks", "perhaps")
        ]
        right += max(range(3), key=lambda j: scores[j]) == i % 3
    share = right / 12
    assert value["tiny_choice", "harness_acc"] == pytest.approx(share)
    error = (share * (1 - share) / 11) ** 0.5
    assert value["tiny_choice", "harness_acc_stderr"] == pytest.approx(error)
    assert value["tiny_word", "harness_perplexity"] > 1
    assert value["tiny_rolling", "harness_bits_per_byte"] > 1
    (table,) = language_tables(found)
    assert table.rows[0][0] == "tiny_choice, acc" and "±" in table.rows[0][1]


def test_an_unknown_task_is_one_line(tmp_path: Path, tasks: Path) -> None:
    from equilm.measure.harness import Adapter, run_tasks

    adapter = Adapter(byte_model("mamba2", implicit=False), Bytes())
    with pytest.raises(ValueError, match=r"harness: expected one of .*tiny_choice.*got 'lambda'"):
        list(run_tasks(adapter, ["lambda"], include=tasks))
