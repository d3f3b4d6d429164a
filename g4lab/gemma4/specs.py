"""The public Gemma-4 text models and their tiny twins as data, layer by layer.

Dimensions: the `text_config` of google/gemma-4-26B-A4B-it, -31B-it, -E4B-it and -E2B-it on Hugging Face. The rules that
turn them into layers (which layer is wide, which shares another's KV) are those of transformers 5.12 `gemma4`.
Nothing here imports torch.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab.errors import bad

if TYPE_CHECKING:
    import torch
    from transformers import Gemma4TextConfig

SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
RMS_NORM_EPS = 1e-6
LOGIT_SOFTCAP = 30.0
ATTENTION_SCALE = 1.0  # Q and K are normalised per head instead


class QKVMode(enum.StrEnum):
    """Which projections an attention layer owns."""

    QKV = "QKV"  # Q, K and V
    QK = "QK"  # K=V layers: V is K's projection, normed without a weight
    Q = "Q"  # layers that read the KV another layer wrote


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `num_kv_heads` and `head_dim` are those of the KV it reads, whoever wrote it."""

    index: int
    kind: str  # "sliding_attention" or "full_attention"
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None  # keys a query sees, itself included; None sees all
    qkv_mode: QKVMode
    kv_source: int  # the layer whose KV this one reads: itself, unless it shares
    intermediate_size: int  # of the dense MLP

    @property
    def owns_kv(self) -> bool:
        return self.kv_source == self.index

    def kv_heads(self, tp: int) -> int:
        """KV heads on one of `tp` ranks; with fewer heads than ranks they are replicated.

        Raises:
            BadInput: a `tp` that the query heads or the KV heads cannot be split by.
        """
        heads = self.num_kv_heads
        if tp < 1 or (heads % tp and tp % heads) or self.num_q_heads % tp:
            raise bad("tp", tp, f"a divisor of {self.num_q_heads} query heads that fits {heads} KV heads")
        return max(1, heads // tp)


@dataclass(frozen=True)
class Spec:
    """One model. Fields are named as in Hugging Face's Gemma4TextConfig; `repo` is None for the twins."""

    name: str
    repo: str | None
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    sliding_per_full: int  # layers come in groups of this many sliding ones and then a full one
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    global_head_dim: int
    sliding_window: int
    max_position_embeddings: int
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    hidden_size_per_layer_input: int = 0
    num_experts: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int = 0
    vocab_size: int = 262_144

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def has_ple(self) -> bool:
        """Whether every layer adds an embedding of its own (per-layer embeddings, PLE)."""
        return self.hidden_size_per_layer_input > 0

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        kinds = [SLIDING] * self.sliding_per_full + [FULL]
        kinds = [kinds[i % len(kinds)] for i in range(self.num_hidden_layers)]
        first_shared = self.num_hidden_layers - self.num_kv_shared_layers
        # A sharing layer reads the last layer of its kind that still writes KV.
        last_writer = {kind: i for i, kind in enumerate(kinds[:first_shared])}
        return tuple(self._layer(i, kind, i if i < first_shared else last_writer[kind]) for i, kind in enumerate(kinds))

    def _layer(self, index: int, kind: str, kv_source: int) -> Layer:
        sliding, shares = kind == SLIDING, kv_source != index
        k_eq_v = self.attention_k_eq_v and not sliding
        own = QKVMode.QK if k_eq_v else QKVMode.QKV
        return Layer(
            index=index,
            kind=kind,
            num_q_heads=self.num_attention_heads,
            num_kv_heads=self.num_global_key_value_heads if k_eq_v else self.num_key_value_heads,
            head_dim=self.head_dim if sliding else self.global_head_dim,
            window=self.sliding_window if sliding else None,
            qkv_mode=QKVMode.Q if shares else own,
            kv_source=kv_source,
            intermediate_size=self.intermediate_size * (2 if shares and self.use_double_wide_mlp else 1),
        )

    def of_kind(self, kind: str) -> tuple[Layer, ...]:
        """The layers of one kind. Raises BadInput for another kind than "sliding_attention" or "full_attention"."""
        if kind not in (SLIDING, FULL):
            raise bad("kind", kind, f'"{SLIDING}" or "{FULL}"')
        return tuple(layer for layer in self.layers if layer.kind == kind)

    def kv_bytes_per_token(self, kind: str, dtype_bytes: float = 2, tp: int = 1) -> float:
        """Bytes that K and V of one token take on one rank, over all layers of `kind` that write KV.

        Layers that read another layer's KV store nothing. With fewer KV heads than `tp` ranks, heads are replicated.

        Raises:
            BadInput: unknown `kind`, or a `tp` that divides neither the KV heads nor is divided by them.
        """
        per_rank = 0
        for layer in self.of_kind(kind):
            heads = layer.kv_heads(tp)
            if layer.owns_kv:
                per_rank += 2 * heads * layer.head_dim
        return per_rank * dtype_bytes

    def hf_config(self) -> Gemma4TextConfig:
        """The text-only configuration transformers builds this model from (`Gemma4ForCausalLM`)."""
        from transformers import Gemma4TextConfig

        same = (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            *("head_dim", "global_head_dim", "sliding_window", "max_position_embeddings", "attention_k_eq_v"),
            *("num_global_key_value_heads", "num_kv_shared_layers", "use_double_wide_mlp", "vocab_size"),
            "hidden_size_per_layer_input",
        )
        moe = {name: getattr(self, name) for name in ("num_experts", "top_k_experts", "moe_intermediate_size")}
        return Gemma4TextConfig(
            **{name: getattr(self, name) for name in same},
            **(moe if self.is_moe else {}),
            enable_moe_block=self.is_moe,
            vocab_size_per_layer_input=self.vocab_size,
            layer_types=[layer.kind for layer in self.layers],
            rope_parameters=ROPE,
            rms_norm_eps=RMS_NORM_EPS,
            final_logit_softcapping=LOGIT_SOFTCAP,
            architectures=["Gemma4ForCausalLM"],
        )

    def write_checkpoint(
        self, path: Path | str, seed: int = 0, dtype: torch.dtype | str = "bfloat16", weights: bool = True
    ) -> Path:
        """Write a random checkpoint: see `g4lab.gemma4.checkpoint.write_checkpoint`."""
        from g4lab.gemma4.checkpoint import write_checkpoint

        return write_checkpoint(self, path, seed=seed, dtype=dtype, weights=weights)


_TINY = {
    "repo": None,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 1024,
}
_K_EQ_V = {
    "num_hidden_layers": 6,
    "sliding_per_full": 5,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}

_SPECS = (
    Spec(
        name="26b-a4b",
        repo="google/gemma-4-26B-A4B-it",
        hidden_size=2816,
        intermediate_size=2112,
        num_hidden_layers=30,
        sliding_per_full=5,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=2,
        head_dim=256,
        global_head_dim=512,
        attention_k_eq_v=True,
        sliding_window=1024,
        max_position_embeddings=262_144,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
    ),
    Spec(
        name="31b",
        repo="google/gemma-4-31B-it",
        hidden_size=5376,
        intermediate_size=21_504,
        num_hidden_layers=60,
        sliding_per_full=5,
        num_attention_heads=32,
        num_key_value_heads=16,
        num_global_key_value_heads=4,
        head_dim=256,
        global_head_dim=512,
        attention_k_eq_v=True,
        sliding_window=1024,
        max_position_embeddings=262_144,
    ),
    Spec(
        name="e4b",
        repo="google/gemma-4-E4B-it",
        hidden_size=2560,
        intermediate_size=10_240,
        num_hidden_layers=42,
        sliding_per_full=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        global_head_dim=512,
        sliding_window=512,
        max_position_embeddings=131_072,
        num_kv_shared_layers=18,
        hidden_size_per_layer_input=256,
    ),
    Spec(
        name="e2b",
        repo="google/gemma-4-E2B-it",
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=35,
        sliding_per_full=4,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        global_head_dim=512,
        sliding_window=512,
        max_position_embeddings=131_072,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=256,
    ),
    # The twins keep each checkpoint's structure at a size that a CPU serves: as 26B-A4B, as 31B, as E2B.
    Spec(name="tiny-moe", **_TINY, **_K_EQ_V, num_experts=8, top_k_experts=2, moe_intermediate_size=64),
    Spec(name="tiny-dense", **_TINY, **_K_EQ_V),
    Spec(
        name="tiny-ple",
        **_TINY,
        num_hidden_layers=10,
        sliding_per_full=4,
        num_key_value_heads=1,
        num_kv_shared_layers=5,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=32,
    ),
)
_BY_NAME = {s.name: s for s in _SPECS}
NAMES = tuple(_BY_NAME)
CHECKPOINTS = tuple(s.name for s in _SPECS if s.repo)
TWINS = tuple(s.name for s in _SPECS if not s.repo)


def spec(name: str) -> Spec:
    """The model of that name: "26b-a4b", "31b", "e4b", "e2b", or a twin "tiny-moe", "tiny-dense", "tiny-ple".

    Raises:
        BadInput: no such model; the message lists the names.
    """
    if name not in _BY_NAME:
        raise bad("model", name, "one of " + ", ".join(NAMES))
    return _BY_NAME[name]
