"""The patterns of Griffin, Jamba and Zamba, small, and models of them."""

from typing import Any

from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.experts import ExpertsConfig
from equilm.nn.hybrid import HybridConfig, Layer
from equilm.nn.local import LocalConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.mlp import GatedMLPConfig
from equilm.nn.model import LanguageModel
from equilm.nn.rglru import RGLRUConfig
from equilm.nn.s6 import S6Config
from equilm.solve import Phantom, Solve
from tests.nn.build import language_model, make_contractive

MLP = GatedMLPConfig(hidden=12)
EXPERTS = ExpertsConfig(hidden=6, experts=4, chosen=2)
ATTENTION = AttentionConfig(heads=2, kv_heads=1, theta=100.0)
RGLRU = Layer(mixer=RGLRUConfig(heads=2), mlp=MLP)
MAMBA = Layer(mixer=Mamba2Config(expand=2, head_width=4, state_size=3, groups=2))

# A pattern, and how many layers make it twice, or twice and a bit.
PATTERNS: dict[str, tuple[tuple[Layer, ...], int]] = {
    "griffin": (
        (RGLRU, RGLRU, Layer(mixer=LocalConfig(heads=2, theta=100.0, window=3), mlp=MLP)),
        4,
    ),
    "jamba": (
        (
            Layer(mixer=S6Config(state_size=3, step_rank=2), mlp=EXPERTS),
            Layer(mixer=ATTENTION, mlp=MLP),
            Layer(mixer=ATTENTION, mlp=EXPERTS),
        ),
        3,
    ),
    "zamba": ((MAMBA, Layer(mixer=ATTENTION, mlp=MLP, share="attention")), 4),
}


def hybrid_model(name: str, **settings: Any) -> LanguageModel:
    """Return a random model of a pattern in float64."""
    layers, num_layers = PATTERNS[name]
    sizes: dict[str, Any] = {
        "mixer": HybridConfig(layers=layers),
        "num_layers": num_layers,
        "mlp_hidden": None,
    }
    return language_model("mamba2", **(sizes | settings))


def implicit_hybrid(
    name: str, *, solve: Solve | None = None, gradient: Any = None, **settings: Any
) -> LanguageModel:
    """Return a random implicit model of a pattern whose F contracts."""
    config = EquilibriumConfig(
        solve=solve or Solve(tolerance=1e-12, max_steps=300, cycle=None),
        gradient=gradient or Phantom(),
    )
    model = hybrid_model(name, weight_norm=True, equilibrium=config, **settings)
    make_contractive(model)
    return model
