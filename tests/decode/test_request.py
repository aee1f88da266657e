"""A request that makes no sense is refused where it is made."""

from typing import Any

import pytest

from equilm.decode.request import Request


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt": ()}, "prompt: expected at least one token, got none"),
        ({"tolerance": -1.0}, r"tolerance: expected a number in \[0, 1\], got -1.0"),
        ({"tolerance": 1e300}, r"tolerance: expected a number in \[0, 1\], got 1e\+300"),
        ({"tolerance": float("inf")}, r"tolerance: expected a number in \[0, 1\], got inf"),
        ({"tolerance": float("nan")}, r"tolerance: expected a number in \[0, 1\], got nan"),
        ({"max_steps": 0}, r"max_steps: expected an integer in \[1, 1000000\], got 0"),
        ({"max_steps": 2**40}, r"max_steps: expected an integer in \[1, 1000000\], got 109951"),
        ({"max_steps": 2.5}, r"max_steps: expected an integer in \[1, 1000000\], got 2.5"),
        ({"max_tokens": 0}, "max_tokens: expected an integer >= 1, got 0"),
        ({"logprobs": -1}, "logprobs: expected an integer >= 0, got -1"),
    ],
    ids=str,
)
def test_what_makes_no_sense(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Request(**{"prompt": (1,), **settings})


def test_the_ends_of_what_does() -> None:
    Request(prompt=(1,), tolerance=0, max_steps=1)
    Request(prompt=(1,), tolerance=1, max_steps=1_000_000)
