"""The mixer that `docs/adding.md` adds is the one of the table, which the laws' tests run over."""

import re
from pathlib import Path

from equilm.nn.mingru import MinGRU, MinGRUConfig
from equilm.nn.mixers import MIXERS

ROOT = Path(__file__).parents[2]


def test_the_guide_shows_the_file_as_it_is() -> None:
    guide = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    assert found[1] == (ROOT / "equilm" / "nn" / "mingru.py").read_text(encoding="utf-8")
    assert MIXERS["mingru"] == (MinGRUConfig, MinGRU)


def test_a_mixer_is_sixty_lines_at_most() -> None:
    lines = (ROOT / "equilm" / "nn" / "mingru.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60
