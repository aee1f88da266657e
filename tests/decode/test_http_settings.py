"""Settings of the server that are wrong, and who can reach an address."""

from typing import Any

import pytest

from equilm.decode.server.settings import Limits, ServerConfig


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tolerance": 1e300}, r"tolerance: expected a number in \[0, 1\], got 1e\+300"),
        ({"max_queue": -1}, "max_queue: expected an integer >= 0, got -1"),
        ({"most_steps": 3}, "most_steps: expected an integer >= 64, got 3"),
    ],
)
def test_limits_that_are_wrong(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Limits(**change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"port": 70000}, "port: expected a port number, got 70000"),
        ({"name": ""}, "name: expected a name, got none"),
        ({"api_key": ""}, "api_key: expected ASCII characters, at least one"),
        ({"api_key": "schlüssel"}, "api_key: expected ASCII characters"),
    ],
)
def test_addresses_and_keys_that_are_wrong(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ServerConfig(**change)


def test_which_addresses_are_private() -> None:
    assert all(ServerConfig(host=host).private for host in ("127.0.0.1", "localhost", "::1"))
    assert not any(ServerConfig(host=host).private for host in ("0.0.0.0", "::", "10.0.0.1"))
