"""The check passes on models that keep the laws, and fails on each that breaks one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from equilm.measure.check import Finding, as_table, check_model, token_radius
from equilm.nn.attention import Attention
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.mamba2 import Mamba2
from equilm.nn.mixer import Mixer
from tests.measure.models import small

ROW, PADDED, CALLS = "a row alone, in a batch", "padded, not padded", "in three calls, in one"
MODES = ["window 2, sequential", "simultaneous, sequential"]


def check(*, mixer: str = "mamba2", implicit: bool = True) -> dict[str, Finding]:
    findings = check_model(small(mixer, implicit=implicit), length=4, batch_size=2)
    return {finding.name: finding for finding in findings}


def failed(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.ok is False}


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_an_implicit_model_passes(mixer: str) -> None:
    findings = check(mixer=mixer)
    assert [name for name, one in findings.items() if one.ok] == [ROW, PADDED, CALLS, *MODES]
    assert failed(findings) == set()
    assert findings["tokens converged"].measured == "100.00%"
    assert findings["tokens capped"].measured == findings["tokens cycling"].measured == "0.00%"
    assert 1 < float(findings["evaluations to 1e-05"].measured) < 100


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_an_explicit_model_passes(mixer: str) -> None:
    findings = check(mixer=mixer, implicit=False)
    assert [name for name, one in findings.items() if one.ok] == [ROW, PADDED, CALLS]
    assert len(findings) == 3


def changed(
    monkeypatch: pytest.MonkeyPatch, mixer: type, change: Callable[[Tensor], Tensor]
) -> None:
    """Let `change` have its way with what the mixer puts out."""
    forward = mixer.forward  # type: ignore[attr-defined]

    def wrapped(self: Any, x_BTD: Tensor, *rest: Any) -> Any:
        y_BTD, state = forward(self, x_BTD, *rest)
        return change(y_BTD), state

    monkeypatch.setattr(mixer, "forward", wrapped)
    # Its quick way for one token would go past that.
    monkeypatch.setattr(mixer, "token", Mixer.token)


@pytest.mark.parametrize(("mixer", "cls"), [("mamba2", Mamba2), ("attention", Attention)])
@pytest.mark.parametrize("implicit", [True, False])
def test_rows_that_depend_on_each_other_fail(
    implicit: bool, mixer: str, cls: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, cls, lambda y_BTD: y_BTD + 0.1 * y_BTD.mean(0))
    assert ROW in failed(check(mixer=mixer, implicit=implicit))


def test_looking_ahead_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, Mamba2, lambda y_BTD: y_BTD + 0.1 * y_BTD.mean(1, keepdim=True))
    assert failed(check(implicit=False)) == {PADDED, CALLS}


def test_forgetting_the_state_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Mamba2.forward

    def forgetful(self: Mamba2, x_BTD: Tensor, state: Any = None, *rest: Any) -> Any:
        return forward(self, x_BTD, None, *rest)

    monkeypatch.setattr(Mamba2, "forward", forgetful)
    assert failed(check(implicit=False)) == {CALLS}


def test_windows_that_give_other_answers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    solve_at_once = Equilibrium._solve_at_once

    def wrong(self: Equilibrium, u_BTE: Tensor, *rest: Any) -> Any:
        return solve_at_once(self, u_BTE.flip(-1), *rest)

    monkeypatch.setattr(Equilibrium, "_solve_at_once", wrong)
    assert "simultaneous, sequential" in failed(check())


def test_numbers_that_are_none_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, Mamba2, lambda y_BTD: y_BTD * torch.nan)
    assert failed(check(implicit=False)) == {ROW, PADDED, CALLS}
    assert failed(check()) >= {ROW, PADDED, CALLS, *MODES}


def test_the_radius_of_a_linear_map_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    assert isinstance(model.core, Equilibrium)
    # F(z) = z / 2 + u, whatever the state.
    monkeypatch.setattr(
        model.core.body,
        "forward",
        lambda z_BTD, state=None, u_BTE=None, valid_B=None: (z_BTD / 2 + u_BTE[..., :16], state),
    )
    radius_B = token_radius(model, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert radius_B.tolist() == pytest.approx([0.5, 0.5], rel=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    assert isinstance(model.core, Equilibrium)
    before = model.core.solve, [parameter.clone() for parameter in model.parameters()]
    check_model(model, length=3, batch_size=2)
    assert model.core.solve is before[0]
    assert all(map(torch.equal, model.parameters(), before[1]))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("length", "batch_size", "told"), [(2, 2, "length"), (3, 1, "batch_size")])
def test_too_little_to_check_is_named(length: int, batch_size: int, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{told}: expected an integer >= \d, got"):
        check_model(small(), length=length, batch_size=batch_size)


def test_the_table_fits_a_terminal_and_says_what_failed() -> None:
    findings = [
        Finding("simultaneous, sequential", "4.1e-01, 99.95% alike", "≤ 1e-03 or 100%", False),
        Finding(ROW, "2.5e-06", "≤ 1e-04", True),
        Finding("spectral radius, a token", "0.868, at most 1.106", "< 1 contracts", None),
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(as_table(findings).terminal())
    lines = capture.get().splitlines()
    assert len([line for line in lines if line.strip()]) == 1 + 2 + len(findings)
    assert "FAILS" in capture.get() and " ok" in capture.get()
