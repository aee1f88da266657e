"""Checkpoints of the public reference, `microsoft/implicit_languagemodels`, of both families.

Explicit, implicit and pretrained (4+1) ones differ in `backbone_type` and `deq_params` alone. Only
names and meanings of its settings are used here, none of its code. Read `convert.py` next.
"""

from equilm.hf.settings import Settings
from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import MixerConfig, ModelConfig
from equilm.solve.gradient import Gradient, Implicit, Phantom
from equilm.solve.iterate import Solve
from equilm.solve.picard import Picard

# What concerns training or the choice of kernel, and no number that a model computes.
TRAINING = ("pretrain_steps", "pretrain_iter", "init_gain", "initializer_cfg", "residual_in_fp32")
MAMBA2_TRAINING = ("conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor")
MAMBA2_KERNEL = (
    "chunk_size",
    "use_mem_eff_path",
    "use_materializing_scan",
    "process_group",
    "sequence_parallel",
)


def source_name(name: str) -> str:
    """Return the reference's name of one of our parameters."""
    if name == "embedding":
        return "word_emb.emb.weight"
    if name == "head":
        return "criterion.decoder.weight"
    inner = name.removeprefix("core.").removeprefix("body.")
    return "backbone." + inner.replace(".mlp.w2.", ".mlp.fc2.")


def mamba2_config(settings: Settings, *, has_head: bool) -> ModelConfig:
    """Return the configuration of an `implicit_mamba2` folder, explicit ones included."""
    return _config(settings, settings.integer("n_tokens"))


def llama_config(settings: Settings, *, has_head: bool) -> ModelConfig:
    """Return the configuration of an `implicit_llama3` folder, explicit ones included."""
    return _config(settings, settings.integer("vocab_size"))


def _config(settings: Settings, vocab_size: int) -> ModelConfig:
    backbone = settings.table("backbone_config")
    backbone.expect("pre_norm", True)
    backbone.expect("rms_norm", True)
    backbone.expect("norm_epsilon", 1e-5)
    backbone.refuse("init_z_mode", "ema_alpha")
    width, hidden = backbone.integer("d_model"), backbone.integer("d_inner")
    settings.expect("d_embed", width)
    settings.expect("head_bias", False)
    if hidden:
        backbone.expect("mlp_type", "llama_mlp", default="gated_mlp")
    is_implicit = settings.expect("backbone_type", "implicit", "explicit") == "implicit"
    padded = settings.flag("pad_vocab", False)
    config = ModelConfig(
        vocab_size=vocab_size,
        vocab_multiple=settings.integer("pad_vocab_size_multiple", 8) if padded else 1,
        width=width,
        num_layers=backbone.integer("n_layer"),
        mixer=_mixer(backbone),
        mlp_hidden=2 * hidden // 3 if hidden else None,
        dropout=backbone.number("dropout", 0.0),
        weight_norm=is_implicit and _has_weight_norm(settings, backbone),
        tie_embeddings=settings.flag("tie_embeddings", True),
        equilibrium=_equilibrium(settings) if is_implicit else None,
    )
    backbone.close(*TRAINING, "mlp_type", "do_weight_norm")
    return config


def _mixer(backbone: Settings) -> MixerConfig:
    block = backbone.table("block_cfg")
    if backbone.expect("block_type", "mamba2", "transformer") == "transformer":
        return _attention(block)
    return _mamba2(block)


def _attention(block: Settings) -> AttentionConfig:
    block.expect("bias", False)
    block.expect("apply_rotary", True)
    config = AttentionConfig(
        heads=block.integer("n_head"), theta=block.number("rope_theta", 500_000.0)
    )
    block.close("max_seq_len")
    return config


def _mamba2(block: Settings) -> Mamba2Config:
    block.refuse("d_ssm")
    for key in ("D_has_hdim", "norm_before_gate", "bias", "allow_negative_A_EV"):
        block.expect(key, False)
    block.expect("rmsnorm", True)
    block.expect("conv_bias", True)
    block.expect("dt_limit", [0.0, float("inf")])
    config = Mamba2Config(
        expand=block.integer("expand", 2),
        head_width=block.integer("headdim", 64),
        state_size=block.integer("d_state", 128),
        groups=block.integer("ngroups", 1),
        conv_width=block.integer("d_conv", 4),
    )
    block.close(*MAMBA2_TRAINING, *MAMBA2_KERNEL)
    return config


def _has_weight_norm(settings: Settings, backbone: Settings) -> bool:
    if not backbone.flag("do_weight_norm", True):
        return False
    norm = settings.table("deq_params").table("norm")
    norm.expect("norm_no_scale", False)
    norm.expect("norm_clip", False)
    return bool(norm.expect("norm_type", "weight_norm", "none") == "weight_norm")


def _equilibrium(settings: Settings) -> EquilibriumConfig:
    deq = settings.table("deq_params")
    solver, training = deq.table("solver"), deq.table("training")
    solver.expect("f_solver", "fixed_point_iter")
    solver.expect("f_stop_mode", "rel")
    damping = training.number("tau", 0.8)
    gradient: Gradient = Phantom(steps=training.integer("grad"), damping=damping)
    if training.flag("ift", False) or training.flag("hook_ift", False):
        gradient = Implicit()
    # Its evaluation takes `eval_factor` times as many steps; here the caller sets `solve` anew.
    solve = Solve(
        solver=Picard(damping=damping),
        tolerance=solver.number("f_tol"),
        max_steps=solver.integer("f_max_iter"),
    )
    return EquilibriumConfig(solve=solve, gradient=gradient)
