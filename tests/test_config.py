"""Recipes: what is right round-trips, what is wrong is named with its place and its cure."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from equilm.config import ConfigError, decode, encode, load, nearest, save, suggest


@dataclass(frozen=True, kw_only=True)
class Picard:
    kind: Literal["picard"] = "picard"
    damping: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Anderson:
    kind: Literal["anderson"] = "anderson"
    damping: float = 1.0
    history: int = 5


@dataclass(frozen=True, kw_only=True)
class Phase:
    max_steps: int
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected at least 0, got {self.max_steps}")
        if self.until > 1:
            raise ValueError("a phase cannot end so late")


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int = 64
    heads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    task: str
    model: str | Model = "mamba2-130m"
    solver: Picard | Anderson = field(default_factory=lambda: Picard(damping=0.5))
    phases: tuple[Phase, ...] = (Phase(max_steps=4), Phase(max_steps=24, until=0.5))
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 0.25
    decay: Literal["linear", "cosine"] = "linear"
    share: dict[str, float] = field(default_factory=dict)
    resume: Path | None = None
    compile: bool = False


def problems(**data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        decode(Recipe, {"task": "s3", **data})
    return str(caught.value).splitlines()


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_kind_of_value() -> None:
    data = {
        "task": "s3",
        "model": {"width": 32, "heads": [4]},
        "solver": {"kind": "anderson", "history": 3},
        "phases": [{"max_steps": 1}],
        "betas": [1, 0.5],
        "clip": None,
        "decay": "cosine",
        "share": {"easy": 1},
        "resume": "runs/a",
        "compile": True,
    }
    recipe = decode(Recipe, data)
    assert recipe == Recipe(
        task="s3",
        model=Model(width=32, heads=(4,)),
        solver=Anderson(history=3),
        phases=(Phase(max_steps=1),),
        betas=(1.0, 0.5),
        clip=None,
        decay="cosine",
        share={"easy": 1.0},
        resume=Path("runs/a"),
        compile=True,
    )
    assert isinstance(recipe.betas[0], float)
    assert isinstance(recipe.share["easy"], float)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(task="s3"),
        Recipe(task="s3", clip=None, solver=Anderson(), model=Model(heads=()), phases=()),
        Recipe(task="s3", clip=float("inf"), resume=Path("a/b"), share={"x": 0.5}),
    ],
)
def test_saved_settings_load_equal(recipe: Recipe, tmp_path: Path) -> None:
    save(recipe, tmp_path / "config.json")
    assert load(Recipe, tmp_path / "config.json") == recipe
    assert decode(Recipe, encode(recipe)) == recipe
    assert decode(Recipe, json.loads(json.dumps(encode(recipe)))) == recipe


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"modle": "x"}, "modle: unknown key; did you mean `model`?"),
        ({"zzz": 1}, "zzz: unknown key; choose from: betas, clip, compile, decay, "),
        ({"model": {"widht": 3}}, "model.widht: unknown key; did you mean `width`?"),
        (
            {"solver": {"kind": "anderson", "histroy": 3}},
            "solver.histroy: unknown key; did you mean `history`?",
        ),
        (
            {"solver": {"kind": "picard", "history": 3}},
            "solver.history: unknown key; choose from: damping, kind",
        ),
        (
            {"solver": {"kind": "pikard"}},
            "solver.kind: unknown kind 'pikard'; did you mean `picard`?",
        ),
        ({"solver": {"kind": ["picard"]}}, "solver.kind: unknown kind ['picard']; "),
        ({"solver": "picard"}, "solver: expected a table, got 'picard'"),
        ({"phases": [{"max_steps": 1}, {}]}, "phases.1.max_steps: missing, and it has no"),
        ({"phases": [{"max_steps": -1}]}, "phases.0.max_steps: expected at least 0, got -1"),
        ({"phases": [{"max_steps": 1, "until": 2}]}, "phases.0: a phase cannot end so late"),
        ({"phases": [3]}, "phases.0: expected a table, got 3"),
        ({"phases": 3}, "phases: expected a valid array, got 3"),
        ({"model": {"heads": [1, "2"]}}, "model.heads.1: expected a valid integer, got '2'"),
        ({"model": {"width": 3.0}}, "model.width: expected a valid integer"),
        ({"model": {"width": True}}, "model.width: expected a valid integer, got True"),
        ({"model": 3}, "model: expected a valid string or a table, got 3"),
        ({"betas": [0.9]}, "betas: expected 2 items, got 1"),
        ({"clip": "0.1"}, "clip: expected a valid number, got '0.1'"),
        ({"compile": 1}, "compile: expected a valid boolean, got 1"),
        (
            {"decay": "cosin"},
            "decay: expected 'linear' or 'cosine', got 'cosin'; did you mean `cosine`?",
        ),
        ({"task": 3}, "task: expected a valid string, got 3"),
    ],
)
def test_a_mistake_is_one_line_with_place_and_cure(data: dict[str, object], line: str) -> None:
    (found,) = problems(**data)
    assert found.startswith("recipe: " + line)


def test_all_mistakes_at_once() -> None:
    found = problems(modle=1, clip="x", phases=[{"max_steps": -1}, {"max_step": 1}])
    places = ["modle", "phases.0.max_steps", "phases.1.max_step", "phases.1.max_steps", "clip"]
    assert [line.split(": ")[1] for line in found] == places


def test_the_data_must_be_a_table_with_the_required_keys() -> None:
    with pytest.raises(ConfigError, match=r"^here: task: missing, and it has no default$"):
        decode(Recipe, {}, where="here")
    with pytest.raises(ConfigError, match=r"^recipe: expected a table, got 3$"):
        decode(Recipe, 3)  # type: ignore[arg-type]


def test_a_table_refines_the_default_of_its_field() -> None:
    assert decode(Recipe, {"task": "s3", "solver": {}}).solver == Picard(damping=0.5)
    assert decode(Recipe, {"task": "s3", "solver": {"kind": "picard"}}).solver.damping == 0.5
    assert decode(Recipe, {"task": "s3", "solver": {"kind": "anderson"}}).solver == Anderson()
    (found,) = problems(solver={"history": 3})
    assert found == "recipe: solver.history: unknown key; choose from: damping, kind"


def test_kind_is_required_where_nothing_tells_it() -> None:
    @dataclass(frozen=True)
    class Solve:
        solver: Picard | Anderson

    with pytest.raises(ConfigError, match=r"^recipe: solver.kind: missing; choose from: ander"):
        decode(Solve, {"solver": {"damping": 1}})


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("task=a5", {"task": "a5"}),
        ('task = "5"', {"task": "5"}),
        ("clip=none", {"clip": None}),
        ("clip=null", {"clip": None}),
        ("clip=1", {"clip": 1.0}),
        ("model=llama-130m", {"model": "llama-130m"}),
        ("model.width=8", {"model": Model(width=8)}),
        ("model.heads=[3, 4]", {"model": Model(heads=(3, 4))}),
        ("solver.damping=1.0", {"solver": Picard(damping=1.0)}),
        ("solver.kind=anderson", {"solver": Anderson()}),
        ("betas.1=0.99", {"betas": (0.9, 0.99)}),
        (
            "phases.1.max_steps=7",
            {"phases": (Phase(max_steps=4), Phase(max_steps=7, until=0.5))},
        ),
        ("phases=[{max_steps = 3}]", {"phases": (Phase(max_steps=3),)}),
    ],
)
def test_an_override_changes_what_it_names(
    override: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, 'task = "s3"')
    assert load(Recipe, path, [override]) == replace(Recipe(task="s3"), **changed)


def test_overrides_apply_in_order_to_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, 'task = "s3"\n[[phases]]\nmax_steps = 1\n[solver]\nkind = "anderson"')
    overrides = ["phases.0.max_steps=2", "solver.history=1", "solver.history=2", "model=tiny"]
    recipe = load(Recipe, path, overrides)
    assert recipe.phases == (Phase(max_steps=2),)
    assert recipe.solver == Anderson(history=2)
    assert recipe.model == "tiny"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip", "override 'clip': expected key=value"),
        ("a..b=1", "override 'a..b=1': expected key=value"),
        ("task.x=1", "override 'task.x=1': there is no `x` in 's3'"),
        ("phases.2.max_steps=1", "there is no `2` in an array of 2"),
        ("phases.-1.max_steps=1", "there is no `-1` in an array of 2"),
        ("solver.dampign=1", "+ overrides: solver.dampign: unknown key; did you mean `damping`?"),
        ("phasse.1.max_steps=1", "+ overrides: phasse: unknown key; did you mean `phases`?"),
    ],
)
def test_a_wrong_override_says_why(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, 'task = "s3"')
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.toml", 'task = "s3"\nclip =\n', "line 2"),
        ("broken.json", '{"task": "s3",\n\n "clip": }', "line 3"),
        ("list.json", "[1]", "expected a table, got [1]"),
        ("recipe.yaml", "task: s3", "expected a .toml or .json file"),
    ],
)
def test_a_broken_file_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Recipe, write(tmp_path, text, name))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "", "demo.toml")
    with pytest.raises(ConfigError, match=r"dmeo.toml: no such file; did you mean `demo.toml`\?$"):
        load(Recipe, tmp_path / "dmeo.toml")


def test_a_file_that_is_not_text_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("folder.toml", "bytes.toml"):
        with pytest.raises(ConfigError, match=name):
            load(Recipe, tmp_path / name)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    save(Recipe(task="old"), path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(Recipe(task="new"), path)
    assert load(Recipe, path).task == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nearest_always_answers_and_suggest_only_where_close() -> None:
    assert nearest("Picrad", ["anderson", "Picard"]) == "Picard"
    assert nearest("xyz", ["anderson", "picard"]) in ("anderson", "picard")
    assert suggest("S_5", ["s5", "a5"]) == "did you mean `s5`?"
    assert suggest("xyz", ["b", "a"]) == "choose from: a, b"
    assert suggest("xyz", []) == "choose from: nothing"
