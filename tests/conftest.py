"""What every test starts from: the same seed, one thread, and no `gpu` test without a GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported: kernels then run in its interpreter, on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Seed torch and keep it to one thread, so that workers neither differ nor compete."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
