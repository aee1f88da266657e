"""Our models as models of `transformers`: AutoModelForCausalLM, `generate`, Trainer, pipelines.

    import equilm.hf.modeling                     # registers them
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, tolerance=0.01)
    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=32)

The mathematics is in `equilm/nn`; this is embedding and head around the same core, and who calls
it how. Only this, `configuration.py`, `loading.py` and `cache.py` import `transformers`; read them
next.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
)
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from equilm.hf.cache import EquilmCache
from equilm.hf.configuration import EquilmConfig
from equilm.hf.dials import Watch, dialled
from equilm.hf.face import source_name, to_keys
from equilm.hf.loading import EquilmPreTrainedModel, wide_names
from equilm.hf.padding import pack
from equilm.nn.linear import prepared
from equilm.nn.model import LanguageModel, build_core, head_product
from equilm.nn.recompute import recomputed

LOSS_OPTIONS = {"num_items_in_batch", "shift_labels"}


class Recompute(GradientCheckpointingLayer):
    """Where the library decides whether a block is computed again in the backward pass."""

    def forward(self, block: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the block returns."""
        return block(*arguments)


class EquilmModel(EquilmPreTrainedModel):
    """Embedding and core: tokens to the outputs before the head."""

    def __init__(self, config: EquilmConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.core = build_core(config.model_config())
        self.recompute = Recompute()
        self.watch = Watch()
        self._keep_in_fp32_modules_strict = wide_names(self.core)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: EquilmCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        tolerance: float | None = None,
        max_steps: int | None = None,
        window: int | None = None,
    ) -> BaseModelOutputWithPast:
        """Return the outputs before the head; arguments as of `EquilmForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: expected exactly one of input_ids and inputs_embeds")
        check_placed(self.core)
        x_BTD = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache = _cache(past_key_values, self._use_cache(use_cache))
        seen = 0 if cache is None else cache.get_seq_length()
        rows, tokens = x_BTD.shape[:2]
        if not tokens:
            raise ValueError("input_ids: expected one token or more a row, got none")
        packing = pack(attention_mask, rows, tokens, seen)
        state = None if cache is None else cache.layer.before(tokens)
        with (
            dialled(self.core, tolerance=tolerance, max_steps=max_steps, window=window),
            self._recomputed(),
            nullcontext() if self.training else self.watch.over(self.core),
        ):
            y_BTD, state = self.core(packing.front(x_BTD), state, None, packing.valid_B)
        y_BTD = packing.back(y_BTD)
        if self._use_cache(use_cache) and cache is not None:
            cache.layer.keep(state, tokens)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=y_BTD,
            past_key_values=cache if self._use_cache(use_cache) else None,
            hidden_states=(x_BTD, y_BTD) if output_hidden_states else None,
        )

    def _embed(self, input_ids: Tensor | None) -> Tensor:
        assert input_ids is not None
        count = self.embed_tokens.num_embeddings
        if input_ids.numel() and not input_ids.is_meta:
            low, high = torch.stack(input_ids.aminmax()).tolist()
            if low < 0 or high >= count:
                raise ValueError(
                    f"input_ids: expected ids in [0, {count}), got {low if low < 0 else high}"
                )
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def _recomputed(self) -> AbstractContextManager[None]:
        asked = self.recompute.gradient_checkpointing and self.training
        return recomputed(self.core, self.recompute) if asked else nullcontext()

    def _use_cache(self, asked: bool | None) -> bool:
        return asked if asked is not None else self.config.use_cache and not self.training


class Head(nn.Linear):
    """The product of `LanguageModel` with its head."""

    def forward(self, input: Tensor) -> Tensor:
        """Return W z, in the type of the weights."""
        return head_product(input, self.weight)


class EquilmForCausalLM(EquilmPreTrainedModel, GenerationMixin):
    """Tokens to logits, loss and generated text."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: EquilmConfig) -> None:
        super().__init__(config)
        self.model = EquilmModel(config)
        self.lm_head = Head(config.width, config.vocab_size, bias=False)
        self.post_init()

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """As the library's, with weights folded and joined once for all tokens."""
        check_placed(self.model.core)
        with torch.no_grad(), prepared(self.model.core):
            return super().generate(*arguments, **options)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # The cache is made in `forward`.
        return False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: EquilmCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        tolerance: float | None = None,
        max_steps: int | None = None,
        window: int | None = None,
        **loss_options: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, and the loss where `labels` are given.

        Args:
            input_ids: (B, T) tokens.
            attention_mask: (B, tokens in the cache + T), 0 at padding, which may stand anywhere:
                each row gives exactly what it gives alone.
            inputs_embeds: (B, T, D) instead of tokens.
            past_key_values: What an earlier call returned; changed unless `use_cache=False`.
            use_cache: Whether to return the state after the tokens; by default outside training.
            labels: (B, T) tokens, −100 where nothing is asked; the one of position t is asked of
                the logits of position t − 1.
            logits_to_keep: How many of the last positions to return logits of, or which; 0 is all.
            output_hidden_states: Whether to return the embedding and the output as a pair.
            tolerance: Of this call's solve; by default that of the configuration.
            max_steps: Evaluations a token may take.
            window: Tokens solved at once, 0 for all of them.
            **loss_options: `num_items_in_batch`, what the summed loss is divided by, if not the
                labels asked; `shift_labels`, labels already where they are asked. No parameters
                of their own, for Trainer takes every one that is called label for required.

        Raises:
            TypeError: For another option.
            ValueError: For tokens and embeddings, or neither; for a token out of range, a mask of
                another shape, another kind of cache, a dial of a solve there is not; for a core
                that is offloaded.
        """
        # Callers such as peft name every option that any model has, and leave it None.
        loss_options = {name: one for name, one in loss_options.items() if one is not None}
        if unknown := loss_options.keys() - LOSS_OPTIONS:
            raise TypeError(f"forward() got an unexpected keyword argument '{unknown.pop()}'")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            tolerance=tolerance,
            max_steps=max_steps,
            window=window,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        z_BTD = outputs.last_hidden_state[:, kept]
        logits_BTV = self.lm_head(z_BTD)
        loss = None
        if labels is not None or loss_options.get("shift_labels") is not None:
            loss = self.loss_function(
                logits=logits_BTV,
                labels=labels,
                vocab_size=self.config.vocab_size,
                **loss_options,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def from_language_model(model: LanguageModel) -> EquilmForCausalLM:
    """Return the same model for `transformers`; both share their parameters but a padded embedding.

    Rows that pad the vocabulary are left out: they take part in nothing.
    """
    with torch.device("meta"), no_init_weights():
        face = EquilmForCausalLM(EquilmConfig(**to_keys(model.config)))
    weights = {source_name(name): leaf for name, leaf in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights and len(weights[name]) != model.vocab_size:
            weights[name] = weights[name][: model.vocab_size].clone()
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    face.load_state_dict(weights, assign=True)
    face.tie_weights()
    return face.train(model.training)


def check_placed(core: nn.Module) -> None:
    """Raise ValueError if the core is offloaded: it is evaluated many times for one forward."""
    if next(core.parameters()).is_meta:
        raise ValueError("device_map: expected the core on a device, got it offloaded")


def _cache(given: object, wanted: bool) -> EquilmCache | None:
    if given is None:
        return EquilmCache() if wanted else None
    if not isinstance(given, EquilmCache):
        kind = type(given).__name__
        raise ValueError(f"past_key_values: expected an EquilmCache, got {kind}")
    return given


AutoConfig.register(EquilmConfig.model_type, EquilmConfig, exist_ok=True)
AutoModel.register(EquilmConfig, EquilmModel, exist_ok=True)
AutoModelForCausalLM.register(EquilmConfig, EquilmForCausalLM, exist_ok=True)
