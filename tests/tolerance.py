"""One table of tolerances, by operation and type; every comparison of two computations uses it."""

import torch
from torch import Tensor

# The largest difference allowed, as a share of the largest entry expected.
TOLERANCE: dict[str, dict[torch.dtype, float]] = {
    "elementwise": {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2},
    "conv": {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2},
    "norm": {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2},
    "attend": {torch.float32: 5e-6, torch.float64: 1e-13},
    "scan": {torch.float32: 2e-5, torch.float64: 1e-12},
    # Kernels that multiply in half precision, of inputs exact in it, against float32.
    "half": {torch.bfloat16: 3e-2, torch.float16: 4e-3},
    "loss": {torch.float32: 2e-6, torch.float64: 1e-13},
    "float32 over 2,000 tokens": {torch.float32: 1e-4},
    "mixer": {torch.float32: 2e-5, torch.float64: 1e-12},
    # Two solves, to 1e-6 relative in float32 and to 1e-7 in float64.
    "equilibrium": {torch.float32: 1e-5, torch.float64: 2e-6},
    # One computation in batches of different sizes.
    "row": {torch.float32: 2e-6},
    "gradient": {torch.float64: 1e-8},
    # Central differences with a step of 1e-5.
    "differences": {torch.float64: 1e-7},
    "jacobian": {torch.float64: 1e-8},
}


def error(got: Tensor, expected: Tensor) -> float:
    """Return max |got − expected| / max |expected|; infinite where a number is not finite."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} is not {tuple(expected.shape)}"
    if got.numel() == 0:
        return 0.0
    # Below this a number of the type has lost digits to underflow.
    smallest = torch.finfo(got.dtype).tiny / torch.finfo(got.dtype).eps
    got, expected = got.detach().double(), expected.detach().double()
    share = (got - expected).abs().amax() / expected.abs().amax().clamp(min=smallest)
    return float(torch.nan_to_num(share, nan=torch.inf))


def assert_close(
    operation: str, got: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None
) -> None:
    """Fail unless the two agree to the tolerance of `operation` in `dtype` (that of `got`)."""
    bound = TOLERANCE[operation][dtype or got.dtype]
    found = error(got, expected)
    assert found <= bound, f"{operation}: expected an error <= {bound:.0e}, got {found:.1e}"
