"""A pattern of layers behind the face for `transformers`: generated, saved and loaded."""

from pathlib import Path

import pytest
import torch

from tests.hf.faces import padded, ragged
from tests.nn.patterns import PATTERNS, hybrid_model

transformers = pytest.importorskip("transformers")

NEW = 5


@torch.no_grad()
@pytest.mark.parametrize("name", PATTERNS)
def test_it_generates_what_ours_does_and_comes_back_from_a_folder(
    name: str, tmp_path: Path
) -> None:
    from equilm.hf.modeling import EquilmForCausalLM, from_language_model

    model = hybrid_model(name).float().eval()
    model.embedding.mul_(20.0)
    prompts = ragged(3, 8)
    tokens_BT, mask_BT = padded(prompts, left=True)
    face = from_language_model(model)
    face.save_pretrained(tmp_path)
    for one in (face, EquilmForCausalLM.from_pretrained(tmp_path).eval()):
        got = one.generate(tokens_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False)
        for row, prompt in zip(got, prompts, strict=True):
            logits, state = model(prompt, model.init_state(1, 16))
            expected = []
            for _ in range(NEW):
                expected.append(int(logits[0, -1].argmax()))
                logits, state = model(torch.tensor([expected[-1:]]), state)
            assert row[-NEW:].tolist() == expected
