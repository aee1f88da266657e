"""Small random models of every kind, contractive where they are iterated."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equilm.nn.attention import AttentionConfig
from equilm.nn.deltanet import DeltaNetConfig, DeltaProductConfig
from equilm.nn.dss import DSSConfig
from equilm.nn.elman import ElmanConfig
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.gla import GLAConfig
from equilm.nn.gru import GRUConfig
from equilm.nn.h3 import H3Config
from equilm.nn.hgrn2 import HGRN2Config
from equilm.nn.hyena import Hyena, HyenaConfig
from equilm.nn.linear import Linear
from equilm.nn.linear_attention import LinearAttentionConfig
from equilm.nn.liquid import LiquidS4Config
from equilm.nn.local import LocalConfig
from equilm.nn.lru import LRUConfig
from equilm.nn.lstm import LSTMConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.mingru import MinGRUConfig
from equilm.nn.model import MIXERS, LanguageModel, ModelConfig
from equilm.nn.orthogonal import OrthogonalConfig
from equilm.nn.qrnn import QRNN, QRNNConfig
from equilm.nn.retnet import RetNetConfig
from equilm.nn.rglru import RGLRU, RGLRUConfig
from equilm.nn.rnn import Recurrent
from equilm.nn.rwkv6 import RWKV6Config
from equilm.nn.s4 import S4Config
from equilm.nn.s4d import S4DConfig
from equilm.nn.s5 import S5Config
from equilm.nn.s6 import S6Config
from equilm.nn.sru import SRU, SRUConfig
from equilm.solve import Anderson, Implicit, Phantom, Picard, Solve

WIDTH, VOCAB = 8, 11
TIGHT = Solve(solver=Anderson(), tolerance=1e-11, max_steps=200, cycle=None)

# Small configurations with every sharing of heads; other rows of MIXERS take their defaults.
SMALL: dict[str, Any] = {
    "mamba2": Mamba2Config(expand=2, head_width=4, state_size=3, groups=2),
    "attention": AttentionConfig(heads=2, kv_heads=1, theta=100.0),
    "elman": ElmanConfig(),
    "gru": GRUConfig(expand=2),
    "lstm": LSTMConfig(),
    "lru": LRUConfig(state_size=3),
    "s4d": S4DConfig(state_size=4, expand=2),
    "dss": DSSConfig(state_size=4),
    "s5": S5Config(state_size=4, blocks=2),
    "s6": S6Config(state_size=3, step_rank=2),
    "s4": S4Config(state_size=4, expand=2),
    "qrnn": QRNNConfig(),
    "orthogonal": OrthogonalConfig(),
    "linear_attention": LinearAttentionConfig(heads=2),
    "retnet": RetNetConfig(heads=2, theta=100.0),
    "gla": GLAConfig(heads=2, rank=3, temperature=2.0),
    "hgrn2": HGRN2Config(lower_bound=0.1),
    "deltanet": DeltaNetConfig(forget_gate=True),
    "deltaproduct": DeltaProductConfig(output_gate=True),
    # Behind its first token a small norm_eps would leave of y no more than its sign.
    "rwkv6": RWKV6Config(heads=2, blend_rank=3, decay_rank=3, norm_eps=1e2),
    "mingru": MinGRUConfig(),
    "local": LocalConfig(heads=2, kv_heads=1, theta=100.0, window=3),
    "rglru": RGLRUConfig(heads=2),
    "h3": H3Config(expand=2, shift_size=3, state_size=4),
    "hyena": HyenaConfig(filter_length=6, features=5, hidden=4, frequency=1.0),
    "sru": SRUConfig(),
    "liquid_s4": LiquidS4Config(state_size=4, expand=2),
}


def language_model(kind: str, *, seed: int = 0, **settings: Any) -> LanguageModel:
    """Return a random model of two layers with MLPs in float64."""
    config = ModelConfig(
        **{
            "vocab_size": VOCAB,
            "width": WIDTH,
            "num_layers": 2,
            "mixer": SMALL[kind] if kind in SMALL else MIXERS[kind][0](),
            "mlp_hidden": 12,
            **settings,
        }
    )
    return LanguageModel(config, generator=torch.Generator().manual_seed(seed)).double()


def equilibrium_model(
    kind: str, *, seed: int = 0, gradient: Any = None, solve: Solve | None = None, **settings: Any
) -> LanguageModel:
    """Return a random implicit model whose F contracts."""
    config = EquilibriumConfig(
        solve=solve or Solve(tolerance=1e-12, max_steps=300, cycle=None),
        gradient=gradient or Phantom(),
    )
    settings = {"weight_norm": True, "equilibrium": config, **settings}
    model = language_model(kind, seed=seed, **settings)
    make_contractive(model)
    return model


@torch.no_grad()
def make_contractive(model: nn.Module) -> None:
    """Let the injection outweigh z inside the layers, and the layers outweigh z behind them."""
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            into_stream = name.endswith(("out_proj", "w2"))
            scale = 6.0 if into_stream or name.endswith("injection") else 0.3
            part.assign(scale * part.effective())
        elif isinstance(part, Recurrent | QRNN | RGLRU):
            part.out_proj.assign(4.0 * part.out_proj.effective())
        elif isinstance(part, Hyena):
            # A product of three, in each of which z counts.
            part.in_proj.assign(0.3 * part.in_proj.effective())
        elif isinstance(part, SRU):
            # Closes the highway, on which z would go round.
            part.bias_r.fill_(4.0)


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    """Return random tokens_BT."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (rows, length), generator=generator)


def float32_model(kind: str, *, window: int | None = None) -> LanguageModel:
    """Return an implicit model of one layer in float32 that is solved to 1e-6."""
    solve = Solve(solver=Picard(damping=1.0), tolerance=1e-6, max_steps=500, window=window)
    return equilibrium_model(kind, num_layers=1, solve=solve).float()


def core_of(model: LanguageModel) -> Equilibrium:
    """Return the equilibrium of an implicit model."""
    assert isinstance(model.core, Equilibrium)
    return model.core


def tight_model(
    kind: str, *, gradient: Any = None, window: int | None = None, num_layers: int = 2
) -> LanguageModel:
    """Return an implicit model in float64 that is solved and differentiated to 1e-11."""
    solve, gradient = replace(TIGHT, window=window), gradient or Implicit(solve=TIGHT)
    return equilibrium_model(kind, solve=solve, gradient=gradient, num_layers=num_layers)
