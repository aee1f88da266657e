"""`equilm generate` prints what `generate` answers, and says in one line what it cannot do."""

import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from equilm.cli import main
from equilm.decode.generate import generate
from equilm.decode.request import Sampling
from equilm.decode.text import Bytes
from equilm.nn.folder import load_model, save_model
from tests.nn.build import equilibrium_model, language_model

GREEDILY = Sampling(temperature=0)
GREEDY = ["--temperature", "0", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tracker"
    save_model(equilibrium_model("mamba2").float(), folder)
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "writer"
    save_model(language_model("attention", vocab_size=256).float(), folder)
    return folder


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["equilm", "generate", *map(str, arguments)])
    with suppress(SystemExit):
        main()
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_ids_go_on(
    tracker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (answer,) = generate(
        load_model(tracker), [[3, 1, 4]], max_tokens=6, sampling=Sampling(temperature=0)
    )
    out, err = said(monkeypatch, capsys, tracker, "--tokens", 3, 1, 4, *GREEDY, "--show-steps")
    text, _, table = out.partition("\n")
    assert text == answer.text
    for token in answer.tokens:
        assert re.search(rf"^ +{token.id} +{token.steps} +converged", table, re.MULTILINE)
    assert "'" not in table
    assert re.fullmatch(r"6 tokens, \d+\.\d evaluations a token\n", err)


def test_without_a_prompt_the_tokenizer_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = language_model("mamba2", vocab_size=257).float()
    save_model(model, tmp_path / "bytes")
    (answer,) = generate(model, [[256]], tokenizer=Bytes(), max_tokens=6, sampling=GREEDILY)
    (same,) = generate(model, [""], tokenizer=Bytes(), max_tokens=6, sampling=GREEDILY)
    assert answer.tokens == same.tokens
    _, err = said(monkeypatch, capsys, tmp_path / "bytes", "--tokenizer", "bytes", *GREEDY)
    assert err.startswith("6 tokens, ")


def test_samples_come_in_order(
    writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = generate(
        load_model(writer), ["abc"], tokenizer=Bytes(), samples=3, max_tokens=5, stop=["z"]
    )
    settings = ["--tokenizer", "bytes", "--samples", 3, "--max-tokens", 5, "--stop", "z"]
    out, _ = said(monkeypatch, capsys, writer, "--prompt", "abc", *settings)
    for number, answer in enumerate(answers, start=1):
        shown = "".join(
            one if one.isprintable() or one == "\n" else "\ufffd" for one in answer.text
        )
        assert f"[{number}]\n{shown}\n" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "prompt: expected a prompt or tokens, got none"),
        (["--prompt", "1", "--tokens", "1"], "prompt: expected a prompt or tokens, got both"),
        (["--prompt", "to be"], "prompt: expected token ids such as '3 1 4', got 'to be'"),
        (["--tokens", "11"], r"prompt: expected ids in \[0, 11\), got 11"),
        (
            ["--tokens", "1", "--tokenizer", "bytes"],
            "tokenizer: expected one of at most 11 ids, .*256",
        ),
        (["--tokens", "1", "--samples", "0"], "samples: expected an integer >= 1, got 0"),
        (["--tokens", "1", "--tokenizer", "nowhere"], "nowhere: expected the folder of a token"),
        (
            ["--tokens", "1", "--tolerance", "-1"],
            r"tolerance: expected a number in \[0, 1\], got -1",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    told: str,
    tracker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = said(monkeypatch, capsys, tracker, *arguments)
    assert out == "" and re.fullmatch(f"equilm: {told}.*\n", err), err


def test_top_p_out_of_range_is_told(
    tracker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(monkeypatch, capsys, tracker, "--tokens", 1, "--top-p", 0)
    assert "top_p: expected a number in (0, 1], got 0.0" in out + err


def test_traffic_is_measured_and_drawn(
    tracker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tracker, tmp_path / "model"))
    monkeypatch.setattr(sys, "argv", ["equilm", "traffic", str(folder), "--rounds", "2"])
    sys.argv += ["--slots", "1", "2", "--answer", "3", "--tolerances", "0.1", "0.01"]
    main()
    assert "model, tolerance 0.1, 0.01, on cpu" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["equilm", "report", str(folder)])
    main()
    assert (folder / "report/traffic.png").exists()
