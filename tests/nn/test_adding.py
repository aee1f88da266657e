"""The mixer that `docs/adding.md` adds keeps the laws, and trains inside an equilibrium."""

import re
from pathlib import Path

import pytest
import torch

from equilm.nn.mixer import Mixer
from equilm.nn.model import MIXERS
from equilm.solve import Solve
from equilm.tasks import cross_entropy_sum
from tests.nn import test_laws
from tests.nn.build import WIDTH, equilibrium_model, language_model

GUIDE = Path(__file__).parents[2] / "docs" / "adding.md"


@pytest.fixture(autouse=True)
def mingru(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the guide's mixer to the table for the length of a test."""
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, type] = {"__name__": "guide"}  # type: ignore[dict-item]
    exec(compile(found[1], str(GUIDE), "exec"), names)
    monkeypatch.setitem(MIXERS, "mingru", (names["MinGRUConfig"], names["MinGRU"]))


def test_laws_hold_alone_and_in_a_stack() -> None:
    x_BTD = torch.randn(3, test_laws.TOKENS, WIDTH, dtype=torch.float64)
    stack = language_model("mingru").core
    mixer = stack.get_submodule("layers.0.mixer")
    assert isinstance(mixer, Mixer)
    for one in (stack, mixer):
        inject_BTE = torch.randn(3, test_laws.TOKENS, one.inject_width, dtype=torch.float64)
        test_laws.test_causal(one, x_BTD, inject_BTE, "mixer")
        test_laws.test_chunk(one, x_BTD, inject_BTE, [2, 1, 2], "mixer")
        test_laws.test_value(one, x_BTD, inject_BTE, "mixer")
        test_laws.test_row(one, x_BTD, inject_BTE, "mixer")
        test_laws.test_empty(one, x_BTD, inject_BTE, "mixer")
        test_laws.test_valid(one, x_BTD.clone(), inject_BTE, "filled", "mixer")


def test_it_trains_inside_an_equilibrium() -> None:
    model = equilibrium_model("mingru", solve=Solve(tolerance=1e-3, max_steps=30)).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens_BT = torch.randint(11, (8, 6))
    losses = []
    for _ in range(30):
        loss, count = cross_entropy_sum(model(tokens_BT)[0], tokens_BT)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append((loss / count).item())
    assert losses[-1] < 0.5 * losses[0]
