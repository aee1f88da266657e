"""A model of the task `speech` says digits: sampled levels of the μ-law, as .wav files.

Read `generate.py` first.
"""

import wave
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from equilm.decode.generate import generate
from equilm.decode.request import Sampling
from equilm.nn.model import LanguageModel
from equilm.tasks.speech import LEVELS, NUM_DIGITS, SAMPLE_RATE, decode


def speak(
    model: LanguageModel,
    digits: Sequence[int],
    *,
    seconds: float,
    sampling: Sampling,
    tolerance: float = 0.01,
    max_steps: int = 64,
) -> list[Tensor]:
    """Sample one wave a digit, each as long as told.

    Args:
        model: Of the task `speech`, in evaluation mode.
        digits: What to say, in 0..9.
        seconds: Of a wave, at least one sample.
        sampling: How samples are chosen; the j-th digit adds j to the seed.
        tolerance: When a token is solved, relative, ≥ 0.
        max_steps: Evaluations a token may take, ≥ 1.

    Returns:
        The waves, float32 in [−1, 1], `seconds` long; where the model named a digit instead of a
        sample the wave ends earlier.

    Raises:
        ValueError: A model of another task, a digit that is none, no sample.
    """
    if model.vocab_size != LEVELS + NUM_DIGITS:
        raise ValueError(
            f"checkpoint: expected a model of the task speech, of {LEVELS + NUM_DIGITS} tokens; "
            f"got one of {model.vocab_size}"
        )
    for digit in digits:
        if not 0 <= digit < NUM_DIGITS:
            raise ValueError(f"digits: expected numbers in 0..{NUM_DIGITS - 1}, got {digit}")
    count = int(seconds * SAMPLE_RATE)
    if count < 1:
        raise ValueError(f"seconds: expected at least one sample of 1/{SAMPLE_RATE}, got {seconds}")
    answers = generate(
        model,
        [(LEVELS + digit,) for digit in digits],
        max_tokens=count,
        sampling=sampling,
        stop_tokens=range(LEVELS, model.vocab_size),
        tolerance=tolerance,
        max_steps=max_steps,
    )
    told = [torch.tensor([token.id for token in answer.tokens]) for answer in answers]
    return [decode(levels.long()) for levels in told]


def write_wav(path: Path, samples: Tensor) -> None:
    """Write a wave as 16-bit mono.

    Args:
        path: The file; its folder must be there.
        samples: (T,) in [−1, 1], SAMPLE_RATE a second.

    Raises:
        OSError: It could not be written.
    """
    whole = (samples.clamp(-1, 1) * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(whole.numpy().astype("<i2").tobytes())
