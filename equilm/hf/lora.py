"""Fine-tuning with LoRA through `peft`, on our models for `transformers`.

    model = get_peft_model(face, for_equilm(LoraConfig(r=8, task_type="CAUSAL_LM")))

A projection of ours is not always called: several are joined to one product, and kernels take their
weights. So the low-rank term is added to the weight itself, once a forward; F stays one fixed
function. Whoever imports this must have `peft`. Read `modeling.py` first.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from equilm.nn.linear import Linear

# Every projection of a mixer and an MLP, and the injection.
TARGETS = ("in_proj", "wq", "wk", "wv", "out_proj", "w1", "w2", "w3", "injection")


def for_equilm(config: LoraConfig) -> LoraConfig:
    """Teach a configuration our projections, in place, and return it.

    Args:
        config: Without `target_modules` it gets all projections there are. Also to be given to
            `PeftModel.from_pretrained`, for a saved one does not remember this.
    """
    config.target_modules = set(config.target_modules or TARGETS)
    config._register_custom_module({Linear: LoraWeight})
    return config


class LoraWeight(nn.Module, LoraLayer):
    """W + Σ (α / r) · B A, over the active adapters, in the place of a `Linear`.

    Raises:
        ValueError: For an option of `peft` that is not a term of the weight.
    """

    # What `LoraLayer` sets.
    base_layer: Any
    lora_A: Any
    lora_B: Any
    scaling: dict[str, float]
    active_adapters: list[str]
    merged_adapters: list[str]
    in_features: int
    out_features: int

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **named: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **named)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **named)
        self._base().added = self.delta

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **named: Any
    ) -> None:
        """Add or renew an adapter."""
        for option in ("lora_dropout", "lora_bias", "use_dora"):
            if getattr(config, option):
                raise ValueError(f"{option}: expected none, for LoRA is a term of the weight here")
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **named)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the product with the whole weight."""
        y_BTD: Tensor = self.base_layer(x_BTD)
        return y_BTD

    def effective(self) -> Tensor:
        """Return the whole weight."""
        weight: Tensor = self.base_layer.effective()
        return weight

    @property
    def inputs(self) -> int:
        """Width of x."""
        return self.in_features

    @property
    def outputs(self) -> int:
        """Width of y."""
        return self.out_features

    def delta(self) -> Tensor:
        """Return what the active adapters add that is not merged."""
        base = self._base()
        like = base.weight_v if base.weight_norm else base.weight
        total = torch.zeros_like(like)
        if self.disable_adapters:
            return total
        for name in self.active_adapters:
            if name in self.lora_A and name not in self.merged_adapters:
                total = total + self.get_delta_weight(name).to(like.dtype)
        return total

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return (α / r) · B A of one adapter."""
        product: Tensor = self.lora_B[adapter].weight @ self.lora_A[adapter].weight
        return self.scaling[adapter] * product

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the weight.

        Raises:
            ValueError: With `safe_merge`, for one that is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name in self.lora_A:
                self._shift(self.get_delta_weight(name), check=safe_merge)
                self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged adapters out of the weight again."""
        while self.merged_adapters:
            self._shift(-self.get_delta_weight(self.merged_adapters.pop()), check=False)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the projection without this around it."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        base = self._base()
        base.added = None
        return base

    def _shift(self, term: Tensor, *, check: bool) -> None:
        base = self._base()
        added, base.added = base.added, None
        weight = base.effective() + term
        base.added = added
        if check and not bool(torch.isfinite(weight).all()):
            raise ValueError("merge: expected finite weights, got others")
        base.assign(weight)

    def _base(self) -> Linear:
        base: Linear = LoraLayer.get_base_layer(self)
        return base

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, Linear)
        return module.inputs, module.outputs
