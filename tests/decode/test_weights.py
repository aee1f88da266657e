"""Weights in 8 bits: an engine answers as a model whose projections were rounded so."""

from typing import Any

import pytest
import torch

from equilm.decode.engine import Engine
from equilm.nn.mamba2 import Mamba2
from equilm.ops.fp8 import by_rows, widened
from tests.decode.plain import ids, plain, ragged, run
from tests.nn.build import equilibrium_model, language_model


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_an_engine_is_the_plain_loop_of_rounded_weights(weight_norm: bool, implicit: bool) -> None:
    build: Any = equilibrium_model if implicit else language_model
    model, rounded = (build("mamba2", weight_norm=weight_norm).eval() for _ in range(2))
    with torch.no_grad():
        for part in rounded.modules():
            for linear in (part.in_proj, part.out_proj) if isinstance(part, Mamba2) else ():
                linear.assign(widened(by_rows(linear.effective()), linear.effective().dtype))
    before = {name: leaf.clone() for name, leaf in model.named_parameters()}
    engine, requests = Engine(model, slots=3, window=1, weights="fp8"), ragged(4)
    told = [plain(rounded, each) for each in requests]
    for _ in range(2):
        assert run(engine, requests) == told
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.named_parameters())
    assert all(
        part.in_proj.narrowed is None for part in model.modules() if isinstance(part, Mamba2)
    )


def test_weights_that_moved_are_rounded_anew() -> None:
    model, requests = equilibrium_model("mamba2").eval(), ragged(2)
    engine = Engine(model, weights="fp8")
    run(engine, requests)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Mamba2):
                part.in_proj.assign(0.7 * part.in_proj.effective())
    assert run(engine, requests) == run(Engine(model, weights="fp8"), requests)


def test_no_other_is_busy_beside_an_engine_that_rounds() -> None:
    model, [request] = equilibrium_model("mamba2").eval(), ragged(1)
    for weights in (("own", "fp8"), ("fp8", "own"), ("fp8", "fp8")):
        busy, other = (Engine(model, weights=each) for each in weights)
        number = busy.submit(request)
        busy.step()
        other.submit(request)
        with pytest.raises(ValueError, match="expected one engine busy"):
            other.step()
        busy.cancel(number)
        while other.busy:
            other.step()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="weights: expected 'own' for a model without Mamba2"):
        Engine(equilibrium_model("attention").eval(), weights="fp8")
    with pytest.raises(ValueError, match="weights: expected 'own' or 'fp8', got 'int4'"):
        Engine(equilibrium_model("mamba2").eval(), weights="int4")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("slots", [1, 4])
def test_the_kernel_reads_them(slots: int) -> None:
    model = equilibrium_model("mamba2").float().eval().cuda()
    requests = [*ragged(3), *ragged(2, logprobs=1, seed=1)]
    engines = [Engine(model, slots=slots, weights="fp8") for _ in range(2)]
    engines[1].slots.recorder.records = False
    first, second = (run(engine, requests) for engine in engines)
    assert [ids(one) for one in first] == [ids(one) for one in second]
    # On a CPU there is no such kernel.
    own = run(Engine(model.cpu(), slots=slots, weights="fp8"), requests)
    assert [ids(one) for one in first] == [ids(one) for one in own]
