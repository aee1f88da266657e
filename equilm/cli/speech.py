"""Commands about sound: speak. Read `decoding.py` first."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from equilm.cli.terminal import argument, say
from equilm.decode.request import Sampling


def speak(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    digits: Annotated[tuple[int, ...], argument("DIGIT [DIGIT ...]")] = tuple(range(10)),
    seconds: float = 0.5,
    out: Annotated[Path, argument("FOLDER")] = Path("speech"),
    data: Annotated[Path | None, argument("FOLDER")] = None,
    sampling: Annotated[Sampling, OmitArgPrefixes, arg(name="")] = Sampling(),  # noqa: B008
    tolerance: float = 0.01,
    max_steps: int = 64,
) -> None:
    """Let a model of the task speech say digits, as .wav files that one can listen to.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        digits: What to say.
        seconds: How long each is.
        out: Where the files go.
        data: The recordings it was trained on: tells the bits a sample on their test split too.
        sampling: How samples are chosen.
        tolerance: A sample is solved when one more evaluation changes it by this share.
        max_steps: Evaluations a sample may take.
    """
    from equilm.decode.speech import speak as sampled
    from equilm.decode.speech import write_wav
    from equilm.hf.convert import load
    from equilm.measure.at_lengths import AtLengths
    from equilm.tasks.speech import Speech, SpeechConfig

    model = load(checkpoint)
    waves = sampled(
        model,
        digits,
        seconds=seconds,
        sampling=sampling,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    out.mkdir(parents=True, exist_ok=True)
    for place, (digit, samples) in enumerate(zip(digits, waves, strict=True)):
        path = out / f"{place}-says-{digit}.wav"
        write_wav(path, samples)
        say(str(path))
    if data is not None:
        measure = AtLengths(lengths=(4000,), tolerance=tolerance, max_steps=max_steps)
        found = measure.records(model, Speech(SpeechConfig(folder=data)))
        (bits,) = [one.value for one in found if one.name == "bits"]
        say(f"{bits:.3f} bits a sample on the first 64 recordings of the test split")
