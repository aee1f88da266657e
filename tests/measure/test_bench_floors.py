"""Floors against counts done by hand."""

import pytest
import torch

from equilm.measure.bench.build import build, stack_of
from equilm.measure.bench.floors import (
    CEILINGS,
    Work,
    floor,
    linear_work,
    stack_work,
    step_work,
    tensor_bytes,
)
from equilm.measure.bench.rows import Row, config_of
from equilm.nn.linear import Linear
from equilm.nn.model import LanguageModel
from equilm.nn.presets import preset

H200 = "NVIDIA H200"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build(config_of("small-mamba2"), torch.device("cpu"))


def test_the_larger_of_two_times() -> None:
    ceiling = CEILINGS[H200]
    found = floor(Work(ceiling.flops, 2 * ceiling.bytes, 3 * ceiling.fp8_flops), H200)
    assert found is not None
    assert found.compute_ms == pytest.approx(4000) and found.memory_ms == pytest.approx(2000)
    assert floor(Work(1.0, 1.0), "cpu") is None


def test_work_adds_up() -> None:
    assert Work(1, 2, 3) + Work(1, 1, 1) * 2 == Work(3, 4, 5)
    assert Work(1, 2, 3).all_flops == 4


def test_a_projection() -> None:
    assert linear_work(Linear(3, 5), 7, 2) == Work(210.0, 2.0 * (21 + 35 + 15))
    assert tensor_bytes((torch.zeros(3), (torch.zeros(2, dtype=torch.int64),))) == 28


def test_a_layer_of_mamba2(model: LanguageModel) -> None:
    """D 128, inner 256, E 584: each written and read once, injection, stream and weights."""
    tokens, layers = 6, 2
    between = 2 * (128 + 584 + 128 + 256) + 584
    weights = 128 * 584 + 256 * 128
    found = stack_work(stack_of(model), 2, 3, 2)
    assert found.bytes == layers * (tokens * (2 * between + 8 * 128) + 2 * weights)
    assert found.flops == tokens * model.core.flops_per_token(3)


def test_a_step_of_an_implicit_model(model: LanguageModel) -> None:
    def work(depth: tuple[int, int]) -> Work:
        return step_work(model, Row(model="", batch=2, length=3, depth=depth), 2)

    sweep = work((5, 1)).flops - work((4, 1)).flops
    assert sweep == pytest.approx(6 * model.core.flops_per_token(3))
    assert work((4, 2)).flops - work((4, 1)).flops == pytest.approx(3 * sweep)
    head = 2 * 6 * model.embedding.numel()
    assert work((0, 1)).flops == pytest.approx(3 * (sweep + head + 2 * 6 * 128 * 584))


def test_products_of_cheap_sweeps_are_counted_apart(model: LanguageModel) -> None:
    row = Row(model="", batch=2, length=3, depth=(4, 1))
    full = step_work(model, row, 2)
    cheap = step_work(model, Row(model="", batch=2, length=3, depth=(4, 1), precision="fp8"), 2)
    products = 2.0 * 6 * 2 * (128 * 584 + 256 * 128)
    assert cheap.fp8_flops == 4 * products and full.fp8_flops == 0
    assert cheap.all_flops == pytest.approx(full.flops)


def test_the_floor_of_a_sweep_while_decoding_is_the_published_one() -> None:
    """130m, one sequence: weights at 4.28 TB/s take 0.042 ms, with its state 0.044."""
    with torch.device("meta"):
        body = stack_of(LanguageModel(preset("explicit-mamba2-130m")))
    found = floor(stack_work(body, 1, 1, 2), H200)
    assert found is not None and found.memory_ms == pytest.approx(0.042, abs=0.001)


def test_an_explicit_step_has_no_solve() -> None:
    model = build(config_of("explicit-small-mamba2"), torch.device("cpu"))
    found = step_work(model, Row(model="", batch=2, length=3), 2)
    layers = 6 * model.core.flops_per_token(3)
    assert found.flops == pytest.approx(3 * (layers + 2 * 6 * model.embedding.numel()))
