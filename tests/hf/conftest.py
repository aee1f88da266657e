"""Copies of the reference's folders that a test may damage; every kind of model."""

import shutil
from pathlib import Path

import pytest

from tests.hf.faces import KINDS
from tests.hf.folders import GOLDEN


@pytest.fixture(params=["mamba2", "llama"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of the reference that a test may damage."""
    return Path(shutil.copytree(GOLDEN / f"implicit_{request.param}", tmp_path / "reference"))


@pytest.fixture
def mamba2_reference(tmp_path: Path) -> Path:
    """Return a Mamba2 folder of the reference that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "implicit_mamba2", tmp_path / "reference"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return a kind of model for `tests/hf/faces.py`."""
    return str(request.param)
