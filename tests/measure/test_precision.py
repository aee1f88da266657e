"""Sweeps in 8 bits against sweeps in full, as a table."""

import pytest
import torch

from equilm.measure.precision import compare_precision
from equilm.nn import equilibrium
from equilm.tasks import IGNORE, Batch
from tests.nn.build import equilibrium_model, language_model


def batch_of(rows: int = 2, length: int = 6) -> Batch:
    tokens_BT = torch.randint(11, (rows, length))
    targets_BT = torch.randint(11, (rows, length))
    targets_BT[:, 0] = IGNORE
    return Batch(tokens_BT, targets_BT)


def test_compare_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equilibrium, "supported", lambda device: True)
    model = equilibrium_model("mamba2", width=32, mlp_hidden=None)
    before = model.core.solve, model.core.gradient
    table = compare_precision(model, batch_of(), sweeps=30, steps=4)
    rows = {name: (full, low) for name, full, low in table.rows}
    full, low = (float(value) for value in rows["residual after the sweeps, median"])
    assert full < 1e-3 < low < 0.1
    assert float(rows["residual after the steps, median"][1]) < low
    assert 0.9 < float(rows["cosine of the gradients"][1]) <= 1
    assert (model.core.solve, model.core.gradient) == before


def test_an_explicit_model_has_no_sweeps() -> None:
    with pytest.raises(ValueError, match="expected an implicit model"):
        compare_precision(language_model("mamba2"), batch_of(), sweeps=1, steps=1)
