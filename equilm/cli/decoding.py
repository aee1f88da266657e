"""Commands that decode: generate, traffic. Read `speed.py` next."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional, arg

from equilm.cli.terminal import argument, console, errors
from equilm.decode.request import Sampling

if TYPE_CHECKING:
    from equilm.decode.engine import Engine
    from equilm.decode.generate import Piece
    from equilm.decode.request import Request, Token
    from equilm.decode.text import Tokenizer

# Up to so many evaluations, and the colour then; more are red. The colour-blind can tell them.
COLOURS = ((4, "#5cb3e8"), (8, "#3cc79b"), (16, "#d9b23c"), (32, "#f08a4b"))
MOST = "#dd5566"


def generate(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    prompt: Annotated[str, argument("TEXT")] = "",
    tokens: Annotated[tuple[int, ...], argument("ID [ID ...]")] = (),
    tokenizer: Annotated[str, argument("NAME")] = "",
    max_tokens: int = 64,
    sampling: Annotated[Sampling, OmitArgPrefixes, arg(name="")] = Sampling(),  # noqa: B008
    samples: int = 1,
    stop: Annotated[tuple[str, ...], argument("TEXT [TEXT ...]")] = (),
    tolerance: float = 0.01,
    max_steps: int = 64,
    precision: Literal["float32", "bf16"] = "float32",
    show_steps: bool = False,
) -> None:
    """Go on from a prompt, and print the answer as it comes.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        prompt: A text to go on from. Without one and without tokens: the tokenizer's begin or end
            token, if it has one.
        tokens: Token ids to go on from, instead of a text.
        tokenizer: A folder, "bytes", or "ids", where the text of a token is its number. If left
            out: the checkpoint's own, or "ids" if it has none.
        max_tokens: Tokens to generate at most.
        sampling: How tokens are chosen.
        samples: Answers to generate; sample j adds j to the seed.
        stop: Texts that end an answer.
        tolerance: A token is solved when one more evaluation changes it by this share.
        max_steps: Evaluations a token may take.
        precision: The type that products are computed in.
        show_steps: Colour each token by the evaluations it took, and list them.
    """
    from equilm.decode.generate import stream
    from equilm.decode.request import Request
    from equilm.decode.text import check_vocabulary, encode_prompt, tokenizer_of

    if prompt and tokens:
        raise ValueError("prompt: expected a prompt or tokens, got both")
    if samples < 1:
        raise ValueError(f"samples: expected an integer >= 1, got {samples}")
    words = tokenizer_of(tokenizer, checkpoint)
    begin = tokens or encode_prompt(words, prompt)
    if not begin:
        raise ValueError("prompt: expected a prompt or tokens, got none")
    request = Request(
        prompt=begin,
        max_tokens=max_tokens,
        stop_tokens=words.stop_tokens,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    seeded = (replace(sampling, seed=sampling.seed + sample) for sample in range(samples))
    requests = [replace(request, sampling=each) for each in seeded]
    engine = _engine(checkpoint, requests, precision)
    check_vocabulary(words, engine.model.vocab_size)
    pieces = stream(engine, requests, tokenizer=words, stop=stop)
    try:
        taken = _print_in_order(pieces, samples, coloured=show_steps)
    except KeyboardInterrupt:
        console.print()  # the answer so far keeps its line
        raise
    _print_effort(taken, words, listed=show_steps)


def traffic(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    slots: tuple[int, ...] = (1, 4, 16),
    rounds: int = 8,
    prompt: int = 16,
    answer: int = 48,
    tolerances: tuple[float, ...] = (0.01,),
    max_steps: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Answer the same requests in lockstep and by sweep, and add the Records to FOLDER.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads; the Records go to its
            records.jsonl, and `report` draws them.
        slots: Numbers of requests at once to try.
        rounds: Requests a slot.
        prompt: Tokens of a prompt at most.
        answer: Tokens of an answer at most.
        tolerances: Each request has one of these; several make requests of mixed difficulty.
        max_steps: Evaluations a token may take.
        temperature: Of the sampling; a large one draws tokens evenly, as tasks do.
        seed: Of prompts and answers.
    """
    import torch

    from equilm import record
    from equilm.hf.convert import load
    from equilm.measure.traffic import TrafficConfig
    from equilm.measure.traffic import traffic as measure
    from equilm.report.traffic import traffic_tables

    settings = TrafficConfig(
        slots=slots,
        rounds=rounds,
        prompt=prompt,
        answer=answer,
        tolerances=tolerances,
        max_steps=max_steps,
        temperature=temperature,
        seed=seed,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {"model": checkpoint.resolve().name, **record.environment(device.type)}
    records: list[record.Record] = []
    for found in measure(load(checkpoint, device=device), settings, about=about):
        record.append(checkpoint / "records.jsonl", found)
        records += found
    for table in traffic_tables(records):
        console.print(table.terminal())


def _engine(
    checkpoint: Path, requests: Sequence["Request"], precision: Literal["float32", "bf16"]
) -> "Engine":
    import torch

    from equilm.decode.engine import Engine
    from equilm.hf.convert import load

    model = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    capacity = len(requests[0].prompt) + requests[0].max_tokens
    return Engine(model, slots=min(len(requests), 8), capacity=capacity, precision=precision)


def _print_in_order(
    pieces: Iterator["Piece"], count: int, *, coloured: bool
) -> list[list["Token"]]:
    """Print the answers one after the other, the first as it comes; return their tokens."""
    held: list[list[Piece]] = [[] for _ in range(count)]
    taken: list[list[Token]] = [[] for _ in range(count)]
    shown = 0
    for piece in pieces:
        held[piece.place].append(piece)
        while shown < count and held[shown]:
            _, text, token, reason = held[shown].pop(0)
            if count > 1 and not taken[shown]:
                console.print(f"[{shown + 1}]", markup=False, style="bold")
            taken[shown] += [] if token is None else [token]
            style = _colour(token.steps) if coloured and token else ""
            console.print(Text(_harmless(text), style=style), end="", soft_wrap=True)
            if reason is not None:
                console.print()
                shown += 1
    return taken


def _print_effort(taken: list[list["Token"]], words: "Tokenizer", *, listed: bool) -> None:
    from equilm.decode.text import Ids
    from equilm.report.tables import Table

    if listed:
        header: tuple[str, ...] = ("token", "id", "evaluations", "status")
        rows: list[tuple[str, ...]] = [
            (repr(words.decode([token.id])), str(token.id), str(token.steps), token.status)
            for tokens in taken
            for token in tokens
        ]
        if isinstance(words, Ids):  # whose text is the id
            header, rows = header[1:], [row[1:] for row in rows]
        console.print(Table("What each token took", header, tuple(rows)).terminal())
    every = [token for tokens in taken for token in tokens]
    mean = sum(token.steps for token in every) / max(len(every), 1)
    open_ = sum(token.status != "converged" for token in every)
    rest = f", {open_} of them not solved to the tolerance" if open_ else ""
    errors.print(
        f"{len(every)} tokens, {mean:.1f} evaluations a token{rest}", style="dim", highlight=False
    )


def _harmless(text: str) -> str:
    """A model's text may not move the cursor or ring the bell."""
    kept = (one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    return "".join(kept)


def _colour(steps: int) -> str:
    return next((colour for most, colour in COLOURS if steps <= most), MOST)
