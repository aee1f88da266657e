"""Fine-tune a model on a text with LoRA: a minute on a CPU for a small model.

    equilm convert MODEL theirs --to transformers
    python recipes/lora.py theirs notes.txt adapted

Writes the adapter into adapted/adapter, and into adapted/merged the model with the adapter in its
weights, which `equilm generate`, `evaluate`, `serve` and `convert` read.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import equilm.hf.modeling  # noqa: F401  (makes the library know our models)
from equilm.decode.text import tokenizer_of
from equilm.hf.lora import for_equilm


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder of an equilm model for transformers")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--tokenizer", default="", help='a folder or "bytes"; the model\'s own')
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()

    torch.manual_seed(0)
    words = tokenizer_of(given.tokenizer, given.model)
    ids = torch.tensor(words.encode(given.text.read_text(encoding="utf-8")))
    model = AutoModelForCausalLM.from_pretrained(given.model)
    settings = LoraConfig(r=given.rank, lora_alpha=2 * given.rank, task_type="CAUSAL_LM")
    model = get_peft_model(model, for_equilm(settings)).train()
    model.print_trainable_parameters()

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.rate, weight_decay=0.0)
    for step in range(given.steps):
        starts = torch.randint(0, len(ids) - given.length + 1, (given.batch,)).tolist()
        rows = torch.stack([ids[start : start + given.length] for start in starts])
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 10 == 0 or step == given.steps - 1:
            print(f"step {step + 1:>4}  loss {loss.item():.4f}", flush=True)

    model.save_pretrained(given.out / "adapter")
    model.merge_and_unload().save_pretrained(given.out / "merged")


if __name__ == "__main__":
    main()
