"""The command that serves a model to others: serve. Read `speed.py` next."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from equilm.cli.terminal import argument, complain, say, waiting
from equilm.decode.server.settings import Limits, ServerConfig

if TYPE_CHECKING:
    from equilm.decode.engine import Engine

KEY = "EQUILM_API_KEY"


def serve(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    tokenizer: Annotated[str, argument("NAME")] = "",
    name: Annotated[str, argument("NAME")] = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = 8,
    capacity: int = 4096,
    prefix_cache: int = 16,
    limits: Annotated[Limits, OmitArgPrefixes, arg(name="")] = Limits(),  # noqa: B008
) -> None:
    """Serve a model: OpenAI's completions and chat, metrics, and a page to look at.

    Clients have to show the key in the environment variable EQUILM_API_KEY, if there is one.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        tokenizer: A folder, "bytes", or "ids", where the text of a token is its number. If left
            out: the checkpoint's own, or "ids" if it has none.
        name: What clients call the model; the folder's name if left out.
        host: Address to listen at. Other machines can reach 0.0.0.0.
        port: 0 takes a free one.
        slots: Answers at once.
        capacity: Tokens of a prompt and its answer, for models whose state grows with them.
        prefix_cache: States after beginnings of prompts to keep for prompts that begin the same.
        limits: How much may be asked.
    """
    _check_extra()
    from equilm.decode.server.run import serve as run
    from equilm.decode.text import check_vocabulary, tokenizer_of

    name, key = name or checkpoint.resolve().name, os.environ.get(KEY)
    config = ServerConfig(host=host, port=port, name=name, api_key=key, limits=limits)
    words = tokenizer_of(tokenizer, checkpoint)
    engine = _engine(checkpoint, slots=slots, capacity=capacity, prefix_cache=prefix_cache)
    check_vocabulary(words, engine.model.vocab_size)
    if not config.private and key is None:
        complain(f"{host}: anybody who can reach it may ask; set {KEY} to keep strangers out")
    run(engine, words, config, started=lambda url: say(f"{name} at {url}; Ctrl+C ends it"))


def _engine(checkpoint: Path, *, slots: int, capacity: int, prefix_cache: int) -> "Engine":
    import torch

    from equilm.decode.engine import Engine
    from equilm.hf.convert import load

    with waiting(f"loading {checkpoint}"):
        model = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    return Engine(model, slots=slots, capacity=capacity, prefix_cache=prefix_cache)


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        told = f"expected the package {error.name}; install it with: pip install 'equilm[serve]'"
        raise ValueError(f"serve: {told}") from None
