"""Sizes that suit a device, unless others are asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from equilm.decode.engine import Engine
from equilm.decode.pace import Pace, pace_of
from equilm.decode.request import Request
from tests.decode.plain import run
from tests.nn.build import equilibrium_model

NAMES = ("window", "chunk", "check_every")
NOTHING: dict[str, Any] = {"implicit": True, "window": None, "chunk": None, "check_every": None}


def test_a_device_has_its_own() -> None:
    assert pace_of(torch.device("cpu"), **NOTHING) == Pace(window=64, chunk=256, check_every=1)
    cuda = pace_of(torch.device("cuda"), **NOTHING)
    assert cuda == Pace(window=2048, chunk=2048, check_every=2)


def test_an_explicit_model_is_solved_after_one_sweep() -> None:
    cuda = pace_of(torch.device("cuda"), **NOTHING | {"implicit": False})
    assert cuda == Pace(window=2048, chunk=2048, check_every=1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_for_is_taken(name: str) -> None:
    for device in ("cpu", "cuda"):
        assert getattr(pace_of(torch.device(device), **NOTHING | {name: 7}), name) == 7
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        pace_of(torch.device("cpu"), **NOTHING | {name: 0})


def test_prompts_do_not_wait_for_what_training_never_asked() -> None:
    model: Any = equilibrium_model("mamba2").eval()
    sweeps = []
    for check_every in (1, 50):
        model.core.solve = replace(model.core.solve, check_every=check_every)
        engine = Engine(model, window=8, short=0)
        run(engine, [Request(prompt=tuple(range(9)), max_tokens=1, tolerance=0.1)])
        sweeps.append(engine.prompts.sweeps)
    assert sweeps[0] == sweeps[1] < 50
