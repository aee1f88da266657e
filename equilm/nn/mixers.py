"""The table of mixers: the one place that knows them all. Read `model.py` next."""

from equilm.nn.attention import Attention, AttentionConfig
from equilm.nn.deltanet import DeltaNet, DeltaNetConfig, DeltaProductConfig
from equilm.nn.dss import DSS, DSSConfig
from equilm.nn.elman import Elman, ElmanConfig
from equilm.nn.gla import GLA, GLAConfig
from equilm.nn.gru import GRU, GRUConfig
from equilm.nn.h3 import H3, H3Config
from equilm.nn.hgrn2 import HGRN2, HGRN2Config
from equilm.nn.hyena import Hyena, HyenaConfig
from equilm.nn.linear_attention import LinearAttention, LinearAttentionConfig
from equilm.nn.liquid import LiquidS4, LiquidS4Config
from equilm.nn.local import Local, LocalConfig
from equilm.nn.lru import LRU, LRUConfig
from equilm.nn.lstm import LSTM, LSTMConfig
from equilm.nn.mamba2 import Mamba2, Mamba2Config
from equilm.nn.mingru import MinGRU, MinGRUConfig
from equilm.nn.mixer import Mixer
from equilm.nn.orthogonal import Orthogonal, OrthogonalConfig
from equilm.nn.qrnn import QRNN, QRNNConfig
from equilm.nn.retnet import RetNet, RetNetConfig
from equilm.nn.rglru import RGLRU, RGLRUConfig
from equilm.nn.rwkv6 import RWKV6, RWKV6Config
from equilm.nn.s4 import S4, S4Config
from equilm.nn.s4d import S4D, S4DConfig
from equilm.nn.s5 import S5, S5Config
from equilm.nn.s6 import S6, S6Config
from equilm.nn.sru import SRU, SRUConfig

MixerConfig = (
    Mamba2Config
    | AttentionConfig
    | ElmanConfig
    | GRUConfig
    | LSTMConfig
    | LRUConfig
    | S4DConfig
    | DSSConfig
    | S5Config
    | S6Config
    | S4Config
    | QRNNConfig
    | OrthogonalConfig
    | LinearAttentionConfig
    | RetNetConfig
    | GLAConfig
    | HGRN2Config
    | DeltaNetConfig
    | DeltaProductConfig
    | RWKV6Config
    | MinGRUConfig
    | LocalConfig
    | RGLRUConfig
    | H3Config
    | HyenaConfig
    | SRUConfig
    | LiquidS4Config
)

# Every mixer by its `kind`: its configuration and its module. Tests run the laws over this table.
MIXERS: dict[str, tuple[type, type[Mixer]]] = {
    "mamba2": (Mamba2Config, Mamba2),
    "attention": (AttentionConfig, Attention),
    "elman": (ElmanConfig, Elman),
    "gru": (GRUConfig, GRU),
    "lstm": (LSTMConfig, LSTM),
    "lru": (LRUConfig, LRU),
    "s4d": (S4DConfig, S4D),
    "dss": (DSSConfig, DSS),
    "s5": (S5Config, S5),
    "s6": (S6Config, S6),
    "s4": (S4Config, S4),
    "qrnn": (QRNNConfig, QRNN),
    "orthogonal": (OrthogonalConfig, Orthogonal),
    "linear_attention": (LinearAttentionConfig, LinearAttention),
    "retnet": (RetNetConfig, RetNet),
    "gla": (GLAConfig, GLA),
    "hgrn2": (HGRN2Config, HGRN2),
    "deltanet": (DeltaNetConfig, DeltaNet),
    "deltaproduct": (DeltaProductConfig, DeltaNet),
    "rwkv6": (RWKV6Config, RWKV6),
    "mingru": (MinGRUConfig, MinGRU),
    "local": (LocalConfig, Local),
    "rglru": (RGLRUConfig, RGLRU),
    "h3": (H3Config, H3),
    "hyena": (HyenaConfig, Hyena),
    "sru": (SRUConfig, SRU),
    "liquid_s4": (LiquidS4Config, LiquidS4),
}
