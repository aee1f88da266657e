"""F of a model, explicit or implicit, as the decoder sees it. Read `slots.py` next.

An explicit model is taken for an equation z = F(z) whose F does not look at z: it is solved after
one evaluation whatever the tolerance, so that nothing else has to tell the two apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.decode.snapshots import grows
from equilm.decode.windows import Windows
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import Linear, Prepared, VariationalDropout, prepared
from equilm.nn.mamba2 import Mamba2
from equilm.nn.mixer import State
from equilm.nn.model import LanguageModel, head_product, whole_tiles
from equilm.ops.fp8 import Scaled, by_rows, widened
from equilm.solve.iterate import Solve
from equilm.solve.picard import Picard
from equilm.solve.window import slide

Weights = Literal["own", "fp8"]


class Prefilled(NamedTuple):
    """What a piece of a prompt left behind."""

    y_BTD: Tensor  # outputs, to be turned into logits
    steps_BT: Tensor
    status_BT: Tensor  # int8, a Status
    state: State
    sweeps: int  # evaluations that depended on each other


class Evaluation:
    """(z, u, state) → (F(z), next state), and how to solve a piece of a prompt with it.

    Args:
        model: In evaluation mode; its step rule and cycle rule are used, its limits are not, nor
            how often it looks.
        weights: Whether Mamba2's projections are rounded to 8 bits, which are what is read where
            one row is evaluated on a GPU.

    Raises:
        ValueError: If the model would drop something out, or has no such projections.
    """

    def __init__(self, model: LanguageModel, *, weights: Weights = "own") -> None:
        for part in model.modules():
            if isinstance(part, VariationalDropout) and part.training and part.rate:
                raise ValueError("model: expected evaluation mode, call model.eval()")
        if weights not in ("own", "fp8"):
            raise ValueError(f"weights: expected 'own' or 'fp8', got {weights!r}")
        self._narrow: dict[Linear, Scaled | None] = {}
        if weights == "fp8":
            mixers = [part for part in model.modules() if isinstance(part, Mamba2)]
            self._narrow = {one: None for part in mixers for one in (part.in_proj, part.out_proj)}
            if not mixers:
                raise ValueError("weights: expected 'own' for a model without Mamba2, got 'fp8'")
        self.model = model
        self.equilibrium = model.core if isinstance(model.core, Equilibrium) else None
        own = self.equilibrium.solve if self.equilibrium else Solve(cycle=None)
        # A training that never asks the host would sweep on over a prompt that is solved.
        self.solve = replace(own, max_steps=max(1, own.max_steps), check_every=1)
        self._head_VD: Tensor | None = None
        self._kept: dict[Prepared, Tensor] = {}
        self._known: list[tuple[float, ...]] = []
        self.body = self.equilibrium.body if self.equilibrium else model.core
        # A buffer that grows would be copied whole for every window.
        whole = grows(model.init_state(1, 1))
        self._windows = Windows(self.body, records=self.can_be_recorded and not whole)

    @property
    def can_be_recorded(self) -> bool:
        """Whether graphs may hold a token's evaluation."""
        like = self.model.embedding
        return (
            like.is_cuda
            and like.dtype == torch.float32
            and isinstance(self.solve.solver, Picard)
            and self.body.recordable
        )

    @property
    def _keeps(self) -> bool:
        """Whether what was made of the weights outlives the block that made it."""
        return self.can_be_recorded or bool(self._narrow)

    @torch.no_grad()
    def refresh(self) -> bool:
        """Forget what was made of weights that have changed since; return whether any have.

        A change that PyTorch does not count, such as a fused optimizer's or one through `.data`, is
        seen in the norms of the parameters: one too small to show in any of them is not.
        """
        known, self._known = self._known, _marks(self.model)
        if known == self._known:
            return False
        self._windows.forget()
        self._kept.clear()
        self._narrow = dict.fromkeys(self._narrow)
        self._head_VD = None
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the weights folded and cast for the duration of the block; `refresh` before.

        Where recordings hold them, the next block finds them where they were.

        Raises:
            ValueError: If another evaluation holds those of this model in another type, or one of
                them rounds.
        """
        self.check_precision()
        self._check_alone()
        with prepared(self.model, self._kept if self._keeps else {}):
            self._round()
            if self._head_VD is None:
                self._head_VD = self._head()
            yield

    @torch.no_grad()
    def check_precision(self) -> None:
        """Raise a ValueError if another evaluation holds the weights in another type than here."""
        # All projections are folded together, and to one type.
        one = next(part for part in self.model.modules() if isinstance(part, Linear))
        held, wanted = one.made(), one.fold().dtype
        if held is not None and held.dtype != wanted:
            raise ValueError(
                f"precision: expected {held.dtype} as of the engine busy with this model, "
                f"got {wanted}"
            )

    @torch.no_grad()
    def _check_alone(self) -> None:
        for part in self.model.modules():
            held = isinstance(part, Linear) and part.is_prepared()
            if held and (part in self._narrow or part.narrowed is not None):
                raise ValueError("weights: expected one engine busy with a model of fp8, got two")

    @torch.no_grad()
    def _round(self) -> None:
        for part, narrowed in self._narrow.items():
            if narrowed is None:
                narrowed = self._narrow[part] = by_rows(part.effective())
                self._kept[part] = widened(narrowed, part.effective().dtype)
            part.narrow(narrowed, self._kept[part])

    def _head(self) -> Tensor:
        head_VD: Tensor = self.model.embedding if self.model.head is None else self.model.head
        device = head_VD.device.type
        if torch.is_autocast_enabled(device):
            head_VD = head_VD.to(torch.get_autocast_dtype(device))
        return whole_tiles(head_VD)

    def logits(self, y_ND: Tensor) -> Tensor:
        """Return what `LanguageModel.logits` does, from the weights held; inside `held`."""
        assert self._head_VD is not None
        logits_NV = head_product(y_ND, self._head_VD)[..., : self.model.vocab_size]
        return logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV

    def inject(self, tokens_BT: Tensor) -> Tensor:
        """Return u_BTE, all that F is told of the tokens."""
        x_BTD = self.model.embed(tokens_BT)
        return x_BTD if self.equilibrium is None else self.equilibrium.inject(x_BTD)

    def __call__(self, z_BTD: Tensor, u_BTE: Tensor, state: State) -> tuple[Tensor, State]:
        """Evaluate F; the state given stays what it is, but for scratch slots."""
        if self.equilibrium is None:
            return self.body(u_BTE, state)
        return self.body(z_BTD, state, u_BTE)

    def peek(self, z_BTD: Tensor, u_BTE: Tensor, state: State) -> Tensor:
        """Evaluate F, and leave the next state unwritten where there are kernels for it."""
        if self.equilibrium is None:
            return self(z_BTD, u_BTE, state)[0]
        return self.body.peek(z_BTD, state, u_BTE)

    @property
    def can_leave_rows(self) -> bool:
        """Whether it takes less to have the next state of some rows only."""
        return self.can_be_recorded and self.body.spares_states and self.equilibrium is not None

    def some(
        self, z_B1D: Tensor, u_B1E: Tensor, state: State, wanted_B: Tensor
    ) -> tuple[Tensor, State]:
        """Evaluate F; the next state may be anything in rows that are not wanted."""
        assert self.equilibrium is not None, "an explicit model wants all"
        return self.body.advance_some(z_B1D, state, u_B1E, wanted_B)

    def zeros(self, rows: int) -> Tensor:
        """Return the point z_B1D that a solve starts from."""
        like = self.model.embedding
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(rows, 1, self.model.config.width, dtype=dtype)

    def round_up(self, tokens: int) -> int:
        """Return how many tokens to take in for so many: a number that others come to as well."""
        return 1 << (tokens - 1).bit_length() if self.can_be_recorded else tokens

    def prefill(
        self, tokens_BT: Tensor, valid_B: Tensor, state: State, *, window: int, solve: Solve
    ) -> Prefilled:
        """Take in a piece of each row's prompt, `window` tokens at a time.

        Args:
            tokens_BT: Padded on the right.
            valid_B: Tokens of each row that are no padding.
            state: Before them, with room; it stays what it is, but for scratch slots.
            window: Tokens solved at once.
            solve: With the tolerance and limit of these rows.
        """
        u_BTE = self.inject(tokens_BT)
        if self.equilibrium is None:
            y_BTD, state = self.body(u_BTE, state, None, valid_B)
            zeros_BT = torch.zeros_like(tokens_BT, dtype=torch.int32)
            return Prefilled(y_BTD, zeros_BT + 1, zeros_BT.to(torch.int8), state, 1)
        found = slide(
            self._windows,
            u_BTE,
            state,
            size=self.model.config.width,
            window=window,
            solve=solve,
            valid=valid_B,
        )
        assert found.last is not None
        y_BTD, state = found.last
        return Prefilled(y_BTD, found.steps, found.status, state, found.sweeps)


def _marks(model: LanguageModel) -> list[tuple[float, ...]]:
    """Where each parameter lies, how often it was written by PyTorch's count, and its norm."""
    leaves: list[Tensor] = list(model.parameters())
    # In their own type, the norms of half precision would show no small change.
    is_narrow = any(leaf.dtype.itemsize < 4 for leaf in leaves)
    found = torch._foreach_norm(leaves, 2, torch.float32 if is_narrow else None)
    norms = torch.stack(found).tolist()
    return [
        (leaf.data_ptr(), leaf._version, norm) for leaf, norm in zip(leaves, norms, strict=True)
    ]
