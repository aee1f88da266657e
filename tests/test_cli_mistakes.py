"""A user's mistake in the words of the command line is one line and exit code 2."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.test_cli import Equilm, equilm, is_one_line, recipe

__all__ = ["equilm", "recipe"]  # fixtures


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --setp a=1", "train: .*: --setp, a=1; nearest is --set KEY=VALUE"),
        ("generate x --max-token 3", "generate: .*: --max-token, 3; nearest is --max-tokens INT"),
        ("serve x --port many", "serve: .*--port.*'many'"),
        ("generate", "generate: missing FOLDER"),
        ("data prepare x", "data prepare: missing --out FOLDER"),
        ("reproduce fig9", "reproduce: .*'fig9'.*'fig1', .*, 'mamba-ablations'.*"),
        ("trian", "trian: unknown command; did you mean `train`.*"),
        ("", ".*train, evaluate.*"),
    ],
)
def test_a_mistake_in_the_words_is_one_line(
    words: str, told: str, encoding: str, equilm: Equilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where there are no letters for a box tyro draws another one.
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    said = equilm(*words.split())
    assert re.fullmatch(f"equilm: {told}\n", said.err), said.err
    assert (said.code, said.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "trian: unknown command; did you mean `train`?"),
        (["fly"], "fly: unknown command; choose from: bench, check, convert"),
        (["train", "nowhere.toml"], "nowhere.toml: no such file$"),
        (["train", "tiny2.json"], "tiny2.json: no such file; did you mean `tiny.json`?"),
        (["evaluate", ".", "--max-steps", "0"], "max_steps: expected an integer >= 1, got 0"),
        (["check", ".", "--length", "0"], "length: expected an integer >= 3, got 0"),
        (["train", "tiny.json", "--set", "stpes=3"], "stpes: unknown key; did you mean `steps`?"),
        (["train", "tiny.json", "--set", "model.mixer.hed_width=3"], "did you mean `head_width`?"),
        (["train", "tiny.json", "--set", "steps=0"], "steps: expected an integer >= 1, got 0"),
        (["train", "tiny.json", "--set", "steps"], "'steps': expected key=value"),
        (["train", "tiny.json", "--set", "task.group=S33"], "got 'S33' in 'S33', nearest is 'S3'"),
        (["train", "tiny.json", "--set", "model.equilibrium.solve.tolerance=-1"],
         "model.equilibrium.solve.tolerance: expected a number >= 0, got -1"),
        (["train", "tiny.json", "--set", "model=mamba-130m"], "did you mean 'mamba2-130m'?"),
        (["train", "tiny.json", "--set", "curriculum.lengths=[2, 0]"], "curriculum.lengths: "),
        (["train", "tiny.json", "--set", "model.mixer.head_width=7"], "head_width: expected a div"),
        (["train", "--resume"], "runs/default: expected a run to resume, with recipe.json"),
        (["train", "--resume", "tiny.json", "--out", "tiny.json/x"], "Not a directory"),
        (["evaluate"], "runs: expected one folder or more, got none"),
        (["evaluate", "."], "expected the folder of a run, with recipe.json"),
        (["evaluate", ".", "--lengths", "0"], r"lengths: .* >= 1, got \(0,\)"),
        (["evaluate", ".", "--tolerance", "-1"], "tolerance: expected a number >= 0, got -1"),
        (["evaluate", ".", "--windows", "-1"], r"windows: .* >= 0, got \(-1,\)"),
        (["check", "."], "expected a run or a model folder"),
        (["report", "."], "expected metrics.jsonl or records.jsonl below it, got neither"),
        (["convert", ".", "target"], "expected a run or a model folder"),
        (["reproduce", "fig1", "--only", "gru"], "only: expected with mixers alone, got it with f"),
        (["bench", "--preset", "mamba2-130n"], "did you mean 'mamba2-130m'?"),
        (["bench", "--preset", "llama-130m", "--only", "y"], "got 'y'; rows: llama-130m 4.1 1×64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
@pytest.mark.usefixtures("recipe")
def test_a_mistake_is_one_line(
    arguments: list[str],
    told: str,
    equilm: Equilm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = equilm(*arguments)
    is_one_line(said, told.replace("?", r"\?"))
    assert said.out == ""
    assert os.listdir(tmp_path) == ["tiny.json"]


@pytest.mark.parametrize(("there", "told"), [
    ("pyproject.toml", "no such file$"),
    ("recipes/nothere.toml", "no such file; did you mean `recipes/nothere.toml`\\?$"),
])  # fmt: skip
def test_what_is_no_recipe_is_not_offered_for_one(
    there: str, told: str, equilm: Equilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / there).touch()
    monkeypatch.chdir(tmp_path)
    is_one_line(equilm("train", "nothere.toml"), f"nothere.toml: {told}")


def test_several_mistakes_are_a_line_each(equilm: Equilm, recipe: Path) -> None:
    said = equilm("train", recipe, "--set", "stpes=3", "--set", "optim.rte=1")
    assert re.fullmatch("(equilm: .*unknown key; did you mean `.*`\\?\n){2}", said.err)


@pytest.mark.parametrize(
    "arguments", [[], ["train", "--otu", "x"], ["check", "x", "--length", "y"]]
)
def test_what_the_parser_refuses_has_no_traceback(arguments: list[str], equilm: Equilm) -> None:
    said = equilm(*arguments)
    assert said.code == 2 and said.err and "Traceback" not in said.err
