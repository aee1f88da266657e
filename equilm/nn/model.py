"""The language model: embedding, a core that is a mixer, head.

    logits = W_head · core(W_emb[tokens]), W_head = W_emb where tied

Explicit models have a `Stack` as core, implicit ones the `Equilibrium` of a stack. Presets by name
are in `presets.py`, initial values in `init.py`. Read `equilm/train/trainer.py` next.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equilm import tree
from equilm.nn.attention import check_room
from equilm.nn.block import Stack
from equilm.nn.capture import Capture
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.experts import Experts
from equilm.nn.gated import Gated
from equilm.nn.hybrid import HybridConfig, Layer, build_stack
from equilm.nn.init import initialise
from equilm.nn.linear import prepared
from equilm.nn.mixer import Mixer, State
from equilm.nn.mixers import MIXERS as MIXERS
from equilm.nn.mixers import MixerConfig as MixerConfig
from equilm.nn.mlp import GatedMLPConfig
from equilm.nn.recompute import recomputed
from equilm.ops.cross_entropy import CrossEntropy, linear_cross_entropy


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A language model.

    Args:
        vocab_size: V, tokens of the task or tokenizer; `None` in a recipe takes the task's.
        vocab_multiple: The embedding is padded to a multiple of this.
        width: D.
        num_layers: Blocks of the stack.
        mixer: What mixes tokens in each block, or a pattern of different blocks.
        mlp_hidden: Hidden width of the gated MLP of each block; `None` for none. The layers of a
            pattern name their own.
        dropout: Rate of the variational dropout behind each mixer.
        weight_norm: Whether projections, taps and injection carry weight norm.
        norm_eps: Added to the mean square in every norm but the mixer's own, > 0.
        tie_embeddings: Whether the head is the embedding, as published.
        equilibrium: How the stack is iterated; `None` makes an explicit model.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    width: int
    num_layers: int
    mixer: MixerConfig | HybridConfig
    mlp_hidden: int | None = None
    dropout: float = 0.0
    weight_norm: bool = False
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    equilibrium: EquilibriumConfig | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "vocab_multiple", "width", "num_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        if self.mlp_hidden is not None and self.mlp_hidden < 1:
            raise ValueError(f"mlp_hidden: expected an integer >= 1, got {self.mlp_hidden}")
        if self.mlp_hidden is not None and isinstance(self.mixer, HybridConfig):
            raise ValueError("mlp_hidden: expected none beside layers, each of which has its own")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: expected a number > 0, got {self.norm_eps}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding.

        Raises:
            ValueError: While `vocab_size` is left to a task.
        """
        if self.vocab_size is None:
            raise ValueError("vocab_size: expected the number of tokens, got none")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class LanguageModel(nn.Module):
    """Tokens to logits.

    Args:
        config: Sizes.
        generator: Draws the initial values; `None` leaves them unset, for loading.
    """

    def __init__(self, config: ModelConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        shape = (config.padded_vocab_size, config.width)
        assert config.vocab_size is not None
        self.vocab_size = config.vocab_size
        self.embedding = nn.Parameter(torch.empty(shape))
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty(shape))
        self.core = build_core(config)
        self.has_experts = any(isinstance(part, Experts) for part in self.core.modules())
        # How `loss` runs the core: from graphs or eagerly, keeping what its blocks compute or not.
        self.capture: Capture | None = None
        self.recompute = False
        self.label_smoothing = 0.0  # of the targets of `loss`
        self._reset_token: int | None = None
        if generator is not None:
            initialise(self, generator=generator)

    def init_state(self, batch: int, capacity: int) -> State:
        """Return the state before the first token, for rows of at most `capacity` tokens."""
        return self.core.init_state(batch, capacity)

    def forward(
        self, tokens_BT: Tensor, state: State = None, *, valid_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return the logits of every token, and the state after them.

        Args:
            tokens_BT: (B, T) int64 in [0, V), T ≥ 1.
            state: From `init_state` or an earlier call, with room for T more; `None` starts anew.
            valid_B: (B,) int64: tokens of each row that are no padding (on the right).

        Returns:
            logits_BTV in float32 or wider over the unpadded vocabulary, and the next state.

        Raises:
            ValueError: For an empty sequence, a token out of range, a state without room, a count
                of valid tokens that is none.
        """
        self._check(tokens_BT, state, valid_B)
        z_BTD, state = self.core(self.embed(tokens_BT), state, None, valid_B)
        return self.logits(z_BTD), state

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, *, ignore: int) -> CrossEntropy:
        """Return the summed cross entropy of targets after each token; logits are never whole.

        Args:
            tokens_BT: (B, T) int64 in [0, V), T ≥ 1.
            targets_BT: (B, T) int64 in [0, V), or `ignore`.
            ignore: The target of a token that is not asked.

        Returns:
            The sum in nats, differentiable, and how many targets are asked, and right.

        Raises:
            ValueError: For an empty sequence, a token or target out of range, other shapes.
        """
        return self._loss(tokens_BT, targets_BT, None, ignore)[0]

    def loss_from(
        self, tokens_BT: Tensor, targets_BT: Tensor, state: State, *, ignore: int
    ) -> tuple[CrossEntropy, State]:
        """Return the loss of tokens that go on from a state, and the state after them.

        Args:
            tokens_BT: As for `loss`.
            targets_BT: As for `loss`.
            state: From `init_state` or an earlier call, with room for T more.
            ignore: As for `loss`.

        Returns:
            What `loss` returns; and the next state, through which no gradient goes back.

        Raises:
            ValueError: As `loss`; also for a state without room.
        """
        found, state = self._loss(tokens_BT, targets_BT, state, ignore)
        return found, tree.detach(state)

    def _loss(
        self, tokens_BT: Tensor, targets_BT: Tensor, state: State, ignore: int
    ) -> tuple[CrossEntropy, State]:
        self._check(tokens_BT, state, None)
        outside_BT = (targets_BT < 0) | (targets_BT >= self.vocab_size)
        if bool((outside_BT & (targets_BT != ignore)).any()):
            raise ValueError(f"targets: expected ids in [0, {self.vocab_size}) or {ignore}")
        x_BTD = self.embed(tokens_BT)
        starts_BT = None if self._reset_token is None else tokens_BT == self._reset_token
        z_BTD, after = self._run(x_BTD, state, starts_BT)
        head_VD: Tensor = self.embedding if self.head is None else self.head
        size, share = self.vocab_size, self.label_smoothing
        found = linear_cross_entropy(
            z_BTD, head_VD, targets_BT, vocab_size=size, ignore=ignore, smoothing=share
        )
        if self.has_experts:
            found = found._replace(loss_sum=self._balanced(found, state, after))
        return found, after

    def _balanced(self, found: CrossEntropy, before: State, after: State) -> Tensor:
        """The same loss, with the gradient of the experts' balance losses beside its own."""
        stack = next(part for part in self.core.modules() if isinstance(part, Stack))
        extra = found.num_targets * stack.balance_loss(before, after)
        return found.loss_sum + (extra - extra.detach())

    def reset_at(self, token: int | None) -> None:
        """Let `loss` open a document at this token, which none before it can be seen from.

        Args:
            token: An id, or `None` for rows that are one text, as at first.

        Raises:
            ValueError: If a mixer cannot begin anew inside a row.
        """
        if token is not None and not self.core.takes_starts:
            raise ValueError(
                f"mixer: expected one that can begin anew inside a row, got "
                f"{self.config.mixer.kind}, which cannot; train it with task.boundaries=carry"
            )
        self._reset_token = token

    def _run(self, x_BTD: Tensor, state: State, starts_BT: Tensor | None) -> tuple[Tensor, State]:
        # Masks are held by `prepared`, so that no state of a random generator needs to be.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        with recomputed(self.core, again) if self.recompute else nullcontext():
            # A recording does not give the state, in which experts count, to rows begun in none.
            if self.capture is not None and not self.has_experts:
                return self.capture(x_BTD, state, starts_BT)
            starts = () if starts_BT is None else (None, None, starts_BT)
            with prepared(self.core) if self.recompute else nullcontext():
                result: tuple[Tensor, State] = self.core(x_BTD, state, *starts)
                return result

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Return the embedding x_BTD of the tokens."""
        return nn.functional.embedding(tokens_BT, self.embedding)

    def logits(self, z_BTD: Tensor) -> Tensor:
        """Return W_head z in float32 or wider over the unpadded vocabulary."""
        head_VD: Tensor = self.embedding if self.head is None else self.head
        logits_BTV = head_product(z_BTD, head_VD)[..., : self.vocab_size]
        return logits_BTV.float() if logits_BTV.dtype.itemsize < 4 else logits_BTV

    def _check(self, tokens_BT: Tensor, state: State, valid_B: Tensor | None) -> None:
        if tokens_BT.ndim != 2 or tokens_BT.numel() < 1:
            shape = tuple(tokens_BT.shape)
            raise ValueError(f"tokens: expected (batch >= 1, length >= 1), got {shape}")
        low, high = torch.stack(tokens_BT.aminmax()).tolist()
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"tokens: expected ids in [0, {self.vocab_size}), got {low if low < 0 else high}"
            )
        rows, length = tokens_BT.shape
        if valid_B is not None and not (
            valid_B.shape == (rows,) and 0 <= int(valid_B.min()) <= int(valid_B.max()) <= length
        ):
            raise ValueError(
                f"valid: expected {rows} counts in [0, {length}], got {valid_B.tolist()}"
            )
        check_room(state, tokens_BT.shape[1])


def head_product(z_BTD: Tensor, head_VD: Tensor) -> Tensor:
    """Return W_head z (B, T, V) in the type of the head, or of autocast."""
    rows, head_VD = len(head_VD), whole_tiles(head_VD)
    return nn.functional.linear(z_BTD.to(head_VD.dtype), head_VD)[..., :rows]


def whole_tiles(head_VD: Tensor) -> Tensor:
    """Return the head, on a GPU with as many rows of zeros behind it as fast products want."""
    missing = -len(head_VD) % 64 if head_VD.is_cuda else 0
    # A ragged vocabulary costs several times as much.
    return nn.functional.pad(head_VD, (0, 0, 0, missing)) if missing else head_VD


def build_core(config: ModelConfig) -> Mixer:
    """Return the stack of `config`, inside an `Equilibrium` if it has one."""
    mixer, hidden = config.mixer, config.mlp_hidden
    mlp = None if hidden is None else GatedMLPConfig(hidden=hidden)
    stack = build_stack(
        mixer.layers if isinstance(mixer, HybridConfig) else [Layer(mixer=mixer, mlp=mlp)],
        config.num_layers,
        config.width,
        weight_norm=config.weight_norm,
        dropout=config.dropout,
        norm_eps=config.norm_eps,
    )
    if config.equilibrium is None:
        return stack
    gated = config.equilibrium.stream == "gated"
    return Equilibrium(
        config.equilibrium,
        Gated(stack, config.width) if gated else stack,
        config.width,
        weight_norm=config.weight_norm,
        norm_eps=config.norm_eps,
    )


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters; the tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
