"""`import equilm` is quiet, light and knows its version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import equilm

HEAVY = {"matplotlib", "pydantic", "rich", "tensorboard", "transformers", "triton", "tyro"}
ROOT = Path(equilm.__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return set(done.stdout.split())


def test_importing_is_silent_and_loads_nothing_heavy() -> None:
    added = modules_after("import equilm, equilm.config") - modules_after("import torch")
    assert not HEAVY & added


def test_a_file_has_three_hundred_lines_at_most() -> None:
    lengths = {path: path.read_text().count("\n") for path in (ROOT / "equilm").rglob("*.py")}
    assert lengths and [f"{path}: {n}" for path, n in lengths.items() if n > 300] == []


def test_the_version_is_said_the_same_twice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert equilm.__version__ == project["version"]
