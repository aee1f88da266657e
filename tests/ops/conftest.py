"""What every test of an operation starts from: kernels that may not leave their tensors."""

import pytest
import torch

from tests.ops.bounds import check_bounds


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check addresses where kernels run in Triton's interpreter."""
    if not torch.cuda.is_available():
        check_bounds(monkeypatch)
