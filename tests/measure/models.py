"""Small models whose every token has one fixed point, quickly found."""

import torch

from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, MixerConfig, ModelConfig

MIXERS: dict[str, MixerConfig] = {
    "mamba2": Mamba2Config(head_width=8, state_size=4),
    "attention": AttentionConfig(heads=2),
}

READS = tuple(f"{name}.weight_g" for name in ("in_proj", "wq", "wk", "wv"))


def small(mixer: str = "mamba2", *, implicit: bool = True) -> LanguageModel:
    """Build a random model of one layer over six tokens, in evaluation mode."""
    config = ModelConfig(
        vocab_size=6,
        width=16,
        num_layers=1,
        mixer=MIXERS[mixer],
        mlp_hidden=24 if mixer == "attention" else None,
        dropout=0.1,
        weight_norm=implicit,
        equilibrium=EquilibriumConfig() if implicit else None,
    )
    model = LanguageModel(config, generator=torch.Generator().manual_seed(1))
    if isinstance(model.core, Equilibrium):
        with torch.no_grad():
            # A small state against a large injection: F hardly depends on z.
            model.core.injection.weight_g.mul_(2.0)
            for name, parameter in model.core.body.named_parameters():
                if name.endswith(("norm_f.weight", *READS)):
                    parameter.mul_(0.1)
    return model.eval()
