"""Text is read whole, measured as by hand, and alike in every mode; what is wrong is one line."""

import gzip
import json
import lzma
import math
import sys
from pathlib import Path

import pytest
import torch

from equilm import record
from equilm.cli import main
from equilm.data import PrepareConfig, prepare
from equilm.decode.text import Bytes, Ids
from equilm.measure.documents import count_bytes, cut, read_documents
from equilm.measure.evaluate import EvaluationConfig
from equilm.measure.language import evaluate_folder
from equilm.measure.language_config import LanguageConfig
from equilm.measure.perplexity import edges, evaluate_text
from equilm.nn.folder import save_model
from equilm.record import Record
from equilm.report.language import language_tables, perplexity_by_position, perplexity_by_sweeps
from equilm.report.select import number
from tests.measure.models import small

LENGTHS = (16, 40)
STRICT = EvaluationConfig(lengths=LENGTHS, windows=(1, 8, 0), batch_size=3, tolerance=1e-5)


def tokens() -> torch.Tensor:
    return torch.randint(0, 6, (3, 41), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = evaluate_text(small(), tokens(), STRICT, num_bytes=len, sweeps=(1, 2, 8))
    return list(found)


def value(records: list[Record], name: str, length: int, window: int | None) -> float:
    (one,) = [r for r in records if (r.name, r.length, r.window) == (name, length, window)]
    return number(one)


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_perplexity_is_that_of_the_logits(mixer: str) -> None:
    model, tokens_BT = small(mixer, implicit=False), tokens()
    found = list(evaluate_text(model, tokens_BT, STRICT, num_bytes=lambda _: 7, sweeps=(1, 2)))
    with torch.no_grad():
        log_BTV = model(tokens_BT[:, :-1])[0].log_softmax(-1)
    nats_BT = -log_BTV.gather(-1, tokens_BT[:, 1:, None])[..., 0]
    for length in LENGTHS:
        mean = nats_BT[:, :length].mean().item()
        assert value(found, "loss", length, None) == pytest.approx(mean, rel=1e-5)
        assert value(found, "perplexity", length, None) == pytest.approx(math.exp(mean), rel=1e-5)
        bits = nats_BT[:, :length].sum().item() / math.log(2) / (3 * 7)
        assert value(found, "bits_per_byte", length, None) == pytest.approx(bits, rel=1e-5)
    (by_position,) = [r.value for r in found if r.name == "loss_by_position"]
    parts = [nats_BT[:, :16], nats_BT[:, 16:32], nats_BT[:, 32:]]
    assert by_position == pytest.approx([part.mean().item() for part in parts], rel=1e-5)
    names = {one.name for one in found}
    assert not names & {"evaluations_per_token", "same_argmax", "perplexity_at_sweeps"}


def test_modes_agree_and_say_what_they_took(records: list[Record]) -> None:
    for length in LENGTHS:
        one_by_one = value(records, "perplexity", length, 1)
        for window in (8, length):
            assert value(records, "perplexity", length, window) == pytest.approx(one_by_one)
            assert value(records, "same_argmax", length, window) > 0.9
            apart = value(records, "perplexity_difference", length, window)
            assert abs(apart) < 1e-4
        assert 1 < value(records, "evaluations_per_token", length, 1) < 30
        assert value(records, "converged", length, 1) == 1
    limited = [r for r in records if r.window is not None and r.name != "perplexity_at_sweeps"]
    assert {(r.tolerance, r.max_steps) for r in limited} == {(1e-5, STRICT.max_steps)}
    assert value(records, "dependent_sweeps", 40, 1) > value(records, "dependent_sweeps", 40, 40)


def test_modes_that_are_not_solved_differ() -> None:
    careless = EvaluationConfig(lengths=(40,), windows=(1, 0), batch_size=3, max_steps=1)
    found = list(evaluate_text(small(), tokens(), careless, num_bytes=len))
    assert value(found, "perplexity_difference", 40, 40) != 0
    assert value(found, "capped", 40, 40) > 0.5


def test_more_evaluations_come_nearer(records: list[Record]) -> None:
    solved = value(records, "perplexity", 16, 16)
    every = [r for r in records if r.name == "perplexity_at_sweeps"]
    assert {r.window for r in every} == {1, 16}
    tried = [r for r in every if r.window == 16]
    apart = [abs(number(r) - solved) for r in tried]
    assert [(r.tolerance, r.max_steps) for r in tried] == [(0, 0), (0, 1), (0, 7)]
    assert [r.sweeps for r in tried] == [1, 2, 8]
    assert apart[0] > apart[1] > apart[2]
    # One evaluation is F at the start of a solve.
    model = small()
    tokens_BT = tokens()[:, :17]
    with torch.no_grad():
        x_BTD = model.embed(tokens_BT[:, :-1])
        z_BTD, _ = model.core.body(torch.zeros_like(x_BTD), None, model.core.inject(x_BTD))  # type: ignore[operator]
        log_BTV = model.logits(z_BTD).log_softmax(-1)
    nats = -log_BTV.gather(-1, tokens_BT[:, 1:, None]).mean().item()
    assert number(tried[0]) == pytest.approx(math.exp(nats), rel=1e-5)


def test_bins_are_as_long_as_all_before_them() -> None:
    assert edges(16) == [0, 16]
    assert edges(100) == [0, 16, 32, 64, 100]
    assert edges(5) == [0, 5]


def test_tables_and_figures(records: list[Record]) -> None:
    tables = {table.title: table for table in language_tables(records)}
    assert tables["Perplexity, by length"].header == ("model", "16", "40")
    assert len(tables["Perplexity, by length"].rows) == 3
    assert len(tables["Guesses that equal the first mode's"].rows) == 2
    assert tables["Perplexity by evaluations a token"].header[1:] == ("1", "2", "8")
    for draw in (perplexity_by_position, perplexity_by_sweeps):
        plot = draw(records)
        assert plot is not None and "simultaneous" in plot.svg()
    assert language_tables([]) == [] and perplexity_by_position([]) is None


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_documents_of_every_kind(tmp_path: Path, suffix: str) -> None:
    write = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with write(tmp_path / f"a.jsonl{suffix}", "wb") as file:  # type: ignore[operator]
        lines = [json.dumps({"text": text, "id": 3}) for text in ("one", "zwölf")]
        file.write(("\n\n".join(lines) + "\n").encode())
    with write(tmp_path / f"b.txt{suffix}", "wb") as file:  # type: ignore[operator]
        file.write(b"all of\nit")
    (tmp_path / "notes.pdf").write_bytes(b"no text")
    assert list(read_documents([tmp_path])) == ["one", "zwölf", "all of\nit"]


def test_documents_of_prepared_shards(tmp_path: Path) -> None:
    texts = [f"document {'x' * i}" for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in texts))
    for _ in prepare(PrepareConfig(test=(str(tmp_path / "a.jsonl"),), out=tmp_path / "shards")):
        pass
    found = [bytes(one.tolist()).decode() for one in read_documents([tmp_path / "shards"])]  # type: ignore[union-attr]
    assert sorted(filter(None, found)) == sorted(texts)
    with pytest.raises(ValueError, match="split: expected one that"):
        list(read_documents([tmp_path / "shards"], split="valid"))


def test_broken_text_is_one_line(tmp_path: Path) -> None:
    broken = {
        "a.txt": (b"", "a.txt: expected text, got an empty file"),
        "b.txt": (b"caf\xe9", "b.txt: expected UTF-8"),
        "c.jsonl": (b'{"text": "x"}\n{"text": ', "c.jsonl:2: expected one JSON object a line"),
        "d.jsonl": (b'{"body": "x"}', "d.jsonl:1: no field 'text'"),
        "e.txt.xz": (lzma.compress(b"words " * 400)[:-40], "e.txt.xz: expected a whole .xz file"),
        "f.txt.gz": (gzip.compress(b"words " * 400)[:-9], "f.txt.gz: expected a whole .gz file"),
        "g.docx": (b"x", "g.docx: expected a file ending in .jsonl"),
    }
    for name, (content, told) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=told):
            list(read_documents([tmp_path / name]))


def test_rows_are_pieces_of_as_many_documents_as_can_be() -> None:
    documents = ["a" * 30, "b" * 9, "c" * 200, "d" * 65]
    rows = cut(documents, Bytes(), length=30, rows=6, seed=0)
    assert rows.shape == (6, 30)
    found = [bytes(row.tolist()).decode() for row in rows]
    assert all(len(set(row)) == 1 for row in found)
    assert {row[0] for row in found} == {"a", "c", "d"}
    assert torch.equal(rows, cut(documents, Bytes(), length=30, rows=6, seed=0))
    with pytest.raises(ValueError, match=r"document of at least 300 tokens.* has 200"):
        cut(documents, Bytes(), length=300, rows=1, seed=0)


def test_bytes_are_counted_without_the_first_token() -> None:
    assert count_bytes(Bytes(), list("aé".encode())) == 2
    assert count_bytes(Ids(), [3, 4]) is None


def test_a_folder_keeps_its_records(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "tiny")
    (tmp_path / "a.txt").write_text("\x00\x01\x02\x03\x04\x05" * 20)
    settings = EvaluationConfig(lengths=(16,), windows=(0,), batch_size=2)
    language = LanguageConfig(text=(tmp_path / "a.txt",), tokenizer="bytes", sweeps=(1, 2))
    found = evaluate_folder(tmp_path / "tiny", settings, language)
    assert record.read(tmp_path / "tiny" / "records.jsonl") == found
    assert {(r.model, r.task, r.split) for r in found} == {("tiny", "a, rows of 16", "test")}
    assert "bits_per_byte" in {r.name for r in found}
    (tmp_path / "a.txt").write_text("letters " * 20)
    with pytest.raises(ValueError, match=r"tokenizer: expected ids below 6.* got 116"):
        evaluate_folder(tmp_path / "tiny", settings, language)


def test_checkpoints_tell_their_step_and_prepared_text_its_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\x00\x01\x02\x03\x04\x05" * 20)
    shards = tmp_path / "shards"
    for _ in prepare(PrepareConfig(valid=(str(tmp_path / "a.txt"),), out=shards)):
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").touch()
    steps = [tmp_path / "run" / "checkpoints" / f"step-{step:08d}" for step in (5, 10)]
    for folder in steps:
        save_model(small(), folder)
    settings = EvaluationConfig(lengths=(16,), windows=(0,), batch_size=2, split="valid")
    language = LanguageConfig(text=(shards,))
    for folder, step in ((steps[0], 5), (steps[1], 10), (tmp_path / "run", 10)):
        found = evaluate_folder(folder, settings, language)
        about = {(one.model, one.task, one.split, one.step) for one in found}
        assert about == {("run", "shards, rows of 16", "valid", step)}
    language = LanguageConfig(text=(tmp_path / "a.txt",), tokenizer="bytes")
    save_model(small(), tmp_path / "tiny")
    assert {one.step for one in evaluate_folder(tmp_path / "tiny", settings, language)} == {None}


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(small(), tmp_path / "tiny")
    (tmp_path / "a.txt").write_text("\x00\x01\x02\x03\x04\x05" * 20)
    command = ["equilm", "evaluate", str(tmp_path / "tiny"), "--text", str(tmp_path / "a.txt")]
    command += ["--lengths", "16", "--windows", "1", "0", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--tokenizer", "bytes"])
    main()
    said = capsys.readouterr().out
    assert "Perplexity, by length" in said and "evaluations a token" in said
    assert "tiny, simultaneous" in said and "100.00%" in said
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert 'tokenizer: expected a folder or "bytes"' in capsys.readouterr().err


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sweeps: expected --text with it"):
        LanguageConfig(sweeps=(1,))
    with pytest.raises(ValueError, match="limit: expected --harness with it"):
        LanguageConfig(limit=3, text=(Path("a.txt"),))
    with pytest.raises(ValueError, match="sweeps: expected integers >= 1"):
        LanguageConfig(sweeps=(0, 2), text=(Path("a.txt"),))
