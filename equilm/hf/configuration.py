"""The configuration of our models for `transformers`. Read `modeling.py` next."""

from dataclasses import field
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from equilm.config import encode
from equilm.hf.face import KEYS, MODEL_TYPE, from_keys, to_keys
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import ModelConfig
from equilm.nn.presets import NEOX_VOCAB_SIZE


class EquilmConfig(PreTrainedConfig):
    """A `ModelConfig` as `transformers` wants it, with the solver's dials in reach.

    The fields are those of `ModelConfig`, tables as plain dicts; `hidden_size` and
    `num_hidden_layers` are other names of `width` and `num_layers`. The defaults are the published
    explicit Mamba2 of 130m. `tolerance`, `max_steps` and `window` (0: all tokens at once) stand
    for what is in `equilibrium["solve"]`, and may be given to `from_pretrained`.

    Raises:
        ConfigError: For a setting that no model of ours has.
    """

    model_type = MODEL_TYPE
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "num_layers",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = NEOX_VOCAB_SIZE
    width: int = 768
    num_layers: int = 24
    mixer: dict[str, Any] = field(default_factory=lambda: encode(Mamba2Config()))
    mlp_hidden: int | None = None
    dropout: float = 0.0
    weight_norm: bool = False
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    equilibrium: dict[str, Any] | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **others: Any) -> None:
        # Partial tables are completed, and wrong ones refused, where they are given.
        for key, value in to_keys(self.model_config()).items():
            setattr(self, key, value)
        super().__post_init__(**others)

    def model_config(self) -> ModelConfig:
        """Return the same as a `ModelConfig`."""
        return from_keys({key: getattr(self, key) for key in KEYS.values()})

    @property
    def tolerance(self) -> float | None:
        """A token is solved when one more evaluation changes it by this share."""
        return self._dial("tolerance")

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        self._turn("tolerance", value)

    @property
    def max_steps(self) -> int | None:
        """Evaluations a token may take."""
        return self._dial("max_steps")

    @max_steps.setter
    def max_steps(self, value: int) -> None:
        self._turn("max_steps", value)

    @property
    def window(self) -> int | None:
        """Tokens solved at once; 0 stands for all of them."""
        return self._dial("window") or (None if self.equilibrium is None else 0)

    @window.setter
    def window(self, value: int) -> None:
        self._turn("window", value or None)

    def _dial(self, name: str) -> Any:
        return None if self.equilibrium is None else self.equilibrium["solve"][name]

    def _turn(self, name: str, value: Any) -> None:
        if self.equilibrium is None:
            raise ValueError(f"{name}: expected none for an explicit model, got {value}")
        self.equilibrium = {
            **self.equilibrium,
            "solve": {**self.equilibrium["solve"], name: value},
        }
        self.model_config()
