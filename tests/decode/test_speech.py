"""Waves of a model of sounds: as long as told, by seed, and read back as they were written."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from equilm.decode.request import Sampling
from equilm.decode.speech import speak, write_wav
from equilm.nn.model import LanguageModel
from tests.nn.build import language_model


@pytest.fixture
def model() -> LanguageModel:
    return language_model("gru", vocab_size=266).float().eval()


def test_waves_by_seed(model: LanguageModel) -> None:
    waves = [speak(model, [3, 7], seconds=0.01, sampling=Sampling(seed=seed)) for seed in (0, 0, 1)]
    for first, again, other in zip(*waves, strict=True):
        assert first.abs().max() <= 1 and len(first) <= 80
        assert torch.equal(first, again)
        assert not torch.equal(first[:20], other[:20])


def test_a_name_of_a_digit_ends_a_wave(model: LanguageModel) -> None:
    with torch.no_grad():
        model.embedding.zero_()
        model.embedding[260] = 1.0
    # All logits are alike but that of one digit, which half of the outputs make the greatest.
    lengths = [len(w) for w in speak(model, range(10), seconds=0.01, sampling=Sampling())]
    assert min(lengths) < 80


def test_a_file_holds_the_wave(tmp_path: Path) -> None:
    samples = torch.linspace(-1, 1, 50)
    write_wav(tmp_path / "a.wav", samples)
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        found = np.frombuffer(file.readframes(50), dtype="<i2") / 32767
    np.testing.assert_allclose(found, samples, atol=1 / 65000)


def test_what_is_refused(model: LanguageModel) -> None:
    told = {"seconds": 0.01, "sampling": Sampling()}
    with pytest.raises(ValueError, match=r"digits: expected numbers in 0\.\.9, got 10"):
        speak(model, [10], **told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds: expected at least one sample of 1/8000, got 0"):
        speak(model, [1], **{**told, "seconds": 0.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint: expected a model of the task speech"):
        speak(language_model("gru"), [1], **told)  # type: ignore[arg-type]
