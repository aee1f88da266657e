"""How the server is set: where it listens, who may ask, and how much.

Read `app.py` next.
"""

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may be asked, and what is meant by those who do not say.

    Args:
        tolerance: Of requests that do not say, in [0, 1].
        max_steps: Of requests that do not say, ≥ 1.
        most_steps: What a request may ask for, ≥ `max_steps`.
        max_prompt: Tokens of a prompt at most, ≥ 1; the engine's capacity is a limit of its own.
        max_answer: Tokens of an answer at most, and of a chat's that does not say, ≥ 1.
        max_body_bytes: Size of a request, ≥ 1.
        max_queue: Answers that may wait for a slot, ≥ 0; the next ones are refused with 429.
        max_seconds: Time for an answer, > 0.
        grace_seconds: Time that running answers get when the server is asked to stop, ≥ 0.
    """

    tolerance: float = 0.01
    max_steps: int = 64
    most_steps: int = 1000
    max_prompt: int = 8192
    max_answer: int = 2048
    max_body_bytes: int = 1_000_000
    max_queue: int = 64
    max_seconds: float = 600.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("tolerance", 0 <= self.tolerance <= 1, "a number in [0, 1]"),
            ("max_steps", self.max_steps >= 1, "an integer >= 1"),
            ("most_steps", self.most_steps >= self.max_steps, f"an integer >= {self.max_steps}"),
            ("max_prompt", self.max_prompt >= 1, "an integer >= 1"),
            ("max_answer", self.max_answer >= 1, "an integer >= 1"),
            ("max_body_bytes", self.max_body_bytes >= 1, "an integer >= 1"),
            ("max_queue", self.max_queue >= 0, "an integer >= 0"),
            ("max_seconds", self.max_seconds > 0, "a number > 0"),
            ("grace_seconds", self.grace_seconds >= 0, "a number >= 0"),
        ):
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Address, name, key and limits.

    Args:
        host: Address to listen at; others can reach the server only if it is no loopback address.
        port: 0 lets the system choose.
        name: What clients call the model.
        api_key: What every client has to show, as a bearer token or as the password that a browser
            asks for; `None` lets anyone in who can reach the address.
        limits: How much may be asked.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "equilm"
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port: expected a port number, got {self.port}")
        if not self.name:
            raise ValueError("name: expected a name, got none")
        if (self.api_key is not None and not self.api_key.isascii()) or self.api_key == "":
            raise ValueError("api_key: expected ASCII characters, at least one")

    @property
    def private(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and no other."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
