"""What an engine counts; the server's metrics read it."""

from typing import NamedTuple


class Counts(NamedTuple):
    """Where an engine stands, and what it has done so far."""

    waiting: int
    prefilling: int
    running: int
    slots: int
    requests: int  # submitted
    tokens: int  # generated
    prompt_tokens: int  # taken in
    cached_tokens: int  # of prompts that need not be taken in again
    sweeps: int
    evaluations: int  # of F, that tokens in slots needed
