"""The command that serves a model to others: serve. Read `speed.py` next."""

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from equilm.cli.terminal import argument, complain, say, waiting

KEY = "EQUILM_API_KEY"


def serve(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    tokenizer: Annotated[str, argument("NAME")] = "",
    name: Annotated[str, argument("NAME")] = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: Annotated[str, argument("NAME")] = "",
    slots: int = 8,
    capacity: int = 4096,
    prefix_cache: int = 16,
    tolerance: float = 0.01,
    max_steps: int = 64,
    max_prompt: int = 8192,
    max_answer: int = 2048,
    max_body_bytes: int = 1_000_000,
    max_queue: int = 64,
    max_seconds: float = 600.0,
    grace_seconds: float = 30.0,
) -> None:
    """Serve a model: OpenAI's completions and chat, metrics, and a page to look at.

    Clients have to show the key in the environment variable EQUILM_API_KEY, if there is one.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        tokenizer: A folder, "bytes", or "ids", where the text of a token is its number. If left
            out: the checkpoint's own, or "ids" if it has none.
        name: What clients call the model; the folder's name if left out.
        host: Address to listen at. Others than this machine can reach 0.0.0.0.
        port: 0 takes a free one.
        device: cpu or cuda; cuda where there is one, if left out.
        slots: Answers at once.
        capacity: Tokens of a prompt and its answer, for models whose state grows with them.
        prefix_cache: States after beginnings of prompts to keep for prompts that begin the same.
        tolerance: Of requests that do not say.
        max_steps: Of requests that do not say.
        max_prompt: Tokens of a prompt at most.
        max_answer: Tokens of an answer at most.
        max_body_bytes: Size of a request at most.
        max_queue: Answers that may wait for a slot; the next ones are refused.
        max_seconds: Time for an answer.
        grace_seconds: Time that running answers get when the server is asked to stop.
    """
    _check_extra()
    import torch

    from equilm.decode.engine import Engine
    from equilm.decode.server.run import serve as run
    from equilm.decode.server.settings import ServerConfig
    from equilm.decode.text import tokenizer_of
    from equilm.hf.convert import load

    config = ServerConfig(
        host=host,
        port=port,
        name=name or checkpoint.resolve().name,
        api_key=os.environ.get(KEY),
        max_prompt=max_prompt,
        max_answer=max_answer,
        max_body_bytes=max_body_bytes,
        max_queue=max_queue,
        max_seconds=max_seconds,
        grace_seconds=grace_seconds,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    words = tokenizer_of(tokenizer, checkpoint)
    with waiting(f"loading {checkpoint}"):
        model = load(checkpoint, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    engine = Engine(model, slots=slots, capacity=capacity, prefix_cache=prefix_cache)
    if not config.private and config.api_key is None:
        complain(f"{host}: anybody who can reach it may ask; set {KEY} to keep strangers out")
    run(engine, words, config, started=lambda url: say(f"{config.name} at {url}; Ctrl+C ends it"))


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        told = f"expected the package {error.name}; install it with: pip install 'equilm[serve]'"
        raise ValueError(f"serve: {told}") from None
