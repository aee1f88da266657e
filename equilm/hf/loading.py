"""What our models for `transformers` share: loading, types, initial values.

Read `modeling.py` next.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from equilm.hf.configuration import EquilmConfig
from equilm.nn.init import INTO_STREAM, initialise_part, stream_scale

# What stays in float32 where a model is loaded in half precision.
WIDE = ("mixer.A_log", "mixer.dt_bias", "mixer.D")
LOADED = "_is_hf_initialized"  # set by the library on parameters that a folder had


class EquilmPreTrainedModel(PreTrainedModel):
    """What both models share: loading, types, initial values."""

    config: EquilmConfig
    base_model_prefix = "model"
    # An equilibrium is one function evaluated many times: it lives on one device.
    _no_split_modules = ("Equilibrium", "Stack")
    _skip_keys_device_placement = ("past_key_values",)
    supports_gradient_checkpointing = True
    _is_stateful = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        core = self.base_model.core
        name = next((name for name, part in core.named_modules() if part is module), None)
        if name is None:
            super()._init_weights(module)
            return
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            return  # offloaded
        scale = stream_scale(core) if name.endswith(INTO_STREAM) else 1.0
        own = [p for p in module.parameters(recurse=False) if getattr(p, LOADED, False)]
        kept = [parameter.clone() for parameter in own]
        # Drawn on the CPU, whatever the default device is.
        with torch.device("cpu"):
            initialise_part(module, scale=scale, generator=torch.default_generator)
        for parameter, value in zip(own, kept, strict=True):
            parameter.copy_(value)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict[str, Tensor] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        expected_keys: list[str] | None = None,
    ) -> Any:
        # The library renames `weight_g` and `weight_v` to what torch's own weight norm calls them.
        load_config.weight_mapping[:] = [
            renaming
            for renaming in load_config.weight_mapping
            if not any("parametrizations" in name for name in renaming.target_patterns)
        ]
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )


def wide_names(core: nn.Module) -> set[str]:
    """Return those of `WIDE` that the core has."""
    names = {".".join(name.split(".")[-2:]) for name, _ in core.named_parameters()}
    return names & set(WIDE)
