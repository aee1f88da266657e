"""The test before the timing: results in the type that is timed, against the plain ones in float64.

In float64 no kernel is used, so that the same function is its own plain twin. Read `operation.py`
and `train_rows.py` for what is compared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# Largest relative error of a tensor in norm. A vector's gradient is a sum over all tokens, of many
# signs: the roundings stay and most of the sum goes.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
VECTOR = 10.0


class Wrong(RuntimeError):
    """What was to be timed does not compute what it should."""


def relative_error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖ in float64; 0 where both are zero, not finite as it is."""
    size = expected.double().norm()
    distance = (got.double() - expected.double()).norm()
    return float(distance if size == 0 else distance / size)


def compare(
    name: str,
    got: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    slack: float = 1.0,
) -> None:
    """Make sure that tensors are what they should be.

    Args:
        name: Of what is tested.
        got: Results by their names, computed in `dtype`.
        expected: The same in float64.
        dtype: Chooses the tolerance.
        slack: Times that tolerance is allowed.

    Raises:
        Wrong: If one of them is not; the message opens with `name`.
    """
    assert got.keys() == expected.keys()
    for part, value in got.items():
        limit = TOLERANCE[dtype] * slack * (VECTOR if value.ndim == 1 else 1.0)
        error = relative_error(value, expected[part])
        if not error <= limit:
            raise Wrong(
                f"{name}: {part} differs by {error:.1e} from its plain twin in float64, more than "
                f"{limit:.0e}, so nothing was timed"
            )
