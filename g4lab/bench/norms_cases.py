"""The cases of the norm benchmarks: layers of the 26B-A4B and the 31B, their inputs, and the bytes they move.

In-place kernels are timed on the same tensors again and again. A norm applied to its own result would multiply by the
weight once more each time, and elements with small weights would fade into denormals; so the rows that are timed
("steady") have weights of 1 and -1, under which a normalised row stays as it is but for roundings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from g4lab.errors import bad
from g4lab.gemma4.specs import FULL, SLIDING, spec
from g4lab.kernels.qkv_norm import QKVMode

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)
MODELS = ("26b-a4b", "31b")
ON_HEADS = ("qkv_norm", "qkv_norm_rope_kv")
ON_ROWS = ("router_norm", "residual_norm", "dual_residual_norm")
OPERATIONS = ON_HEADS + ON_ROWS
POSITIONS = 4096
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class HeadInputs(NamedTuple):
    """Arguments of `qkv_norm_rope_kv` in its order; q, k and v are slices of one packed projection.

    In mode QK v holds what k holds, as the duplicated projection of SGLang 0.5.21 gives it.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    positions: torch.Tensor
    cos_sin_cache: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    cache_loc: torch.Tensor


@dataclass(frozen=True)
class HeadCase:
    """Norm of the heads of T tokens, in one of the three modes; with rotary embedding and cache write or without."""

    operation: str
    tokens: int
    mode: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"

    @property
    def heads(self) -> dict:
        """The keywords that the kernels take."""
        return {
            "mode": self.mode, "num_q_heads": self.num_q_heads, "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
        }  # fmt: skip

    @property
    def bytes(self) -> int:
        """Read and written at least: every input and every result once, the cache's rows and its indices included."""
        element, head = DTYPES[self.dtype].itemsize, DTYPES[self.dtype].itemsize * self.head_dim
        kv = {QKVMode.QKV: 4, QKVMode.QK: 3, QKVMode.Q: 0}[QKVMode(self.mode)]
        moved = self.tokens * head * (2 * self.num_q_heads + kv * self.num_kv_heads)
        moved += element * self.head_dim * (1 if self.mode == QKVMode.Q else 2)
        if self.operation == "qkv_norm_rope_kv":
            moved += self.tokens * (4 * self.head_dim + 8)  # a row of fp32 cosines and sines, a position
            if self.mode != QKVMode.Q:
                moved += self.tokens * (2 * head * self.num_kv_heads + 8)
        return moved

    def inputs(self, device: str = "cuda", rows: str = "steady", cache_dtype: torch.dtype | None = None) -> HeadInputs:
        """Seeded inputs; `rows` is a key of ROWS."""
        generator = torch.Generator(device).manual_seed(self.tokens)
        dtype, d, t = DTYPES[self.dtype], self.head_dim, self.tokens

        def heads(count):
            return ROWS[rows]((t * count, d), dtype, generator).view(t, count * d)

        q, k, v = heads(self.num_q_heads), heads(self.num_kv_heads), heads(self.num_kv_heads)
        packed = torch.cat([q, k, k if self.mode == QKVMode.QK else v], dim=1)
        q, k, v = packed.split([q.shape[1], k.shape[1], v.shape[1]], dim=1)
        slots = torch.randperm(2 * t, generator=generator, device=device)[:t] + 1  # slot 0 is SGLang's padding
        cache = torch.zeros(2, 2 * t + 1, self.num_kv_heads, d, device=device).to(cache_dtype or dtype)
        return HeadInputs(
            q, k, v, *(weights(rows, d, dtype, generator) for _ in range(2)),
            torch.randint(POSITIONS, (t,), generator=generator, device=device),
            cos_sin_cache(d, device), cache[0], cache[1], slots,
        )  # fmt: skip


class RowInputs(NamedTuple):
    """Rows [T, H], a weight [H] for each norm, the residual [T, H] and the layer's scalar [1]."""

    x: torch.Tensor
    other: torch.Tensor
    residual: torch.Tensor
    weights: list[torch.Tensor]
    scalar: torch.Tensor


@dataclass(frozen=True)
class RowCase:
    """A norm of T hidden states of width H."""

    operation: str
    tokens: int
    hidden_size: int
    dtype: str = "bfloat16"

    @property
    def bytes(self) -> int:
        """Read and written at least: every input and the result once."""
        tensors, norms = {"router_norm": (2, 1), "residual_norm": (3, 1), "dual_residual_norm": (4, 3)}[self.operation]
        return DTYPES[self.dtype].itemsize * self.hidden_size * (tensors * self.tokens + norms)

    def inputs(self, device: str = "cuda", rows: str = "steady") -> RowInputs:
        """Seeded inputs; `rows` is a key of ROWS."""
        generator = torch.Generator(device).manual_seed(self.tokens)
        dtype, shape = DTYPES[self.dtype], (self.tokens, self.hidden_size)
        x, other, residual = (ROWS[rows](shape, dtype, generator) for _ in range(3))
        scales = [weights(rows, self.hidden_size, dtype, generator) for _ in range(3)]
        return RowInputs(x, other, residual, scales, torch.full((1,), 0.75, dtype=dtype, device=device))


def cases(tokens: Sequence[int] = TOKENS, operations: Sequence[str] = OPERATIONS) -> list[HeadCase | RowCase]:
    """Every case of these operations and sizes.

    Raises:
        BadInput: an unknown operation, or a size below 1.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise bad("operations", name, "one of " + ", ".join(OPERATIONS))
    for t in tokens:
        if t < 1:
            raise bad("tokens", t, "1 or more")
    return [case for name in operations for case in _of(name, tokens)]


def _of(operation: str, tokens: Sequence[int]) -> Iterator[HeadCase | RowCase]:
    """Layers of both kinds in their own mode and in mode Q (a layer that reads another's KV); hidden states."""
    if operation in ON_HEADS:
        for layer in (next(each for each in spec(m).layers if each.kind == k) for m in MODELS for k in (SLIDING, FULL)):
            shape = layer.num_q_heads, layer.num_kv_heads, layer.head_dim
            for mode in (str(layer.qkv_mode), "Q"):
                yield from (HeadCase(operation, t, mode, *shape) for t in tokens)
    else:
        # Only an MoE has a router; the dual norm is timed at both widths to see how it grows.
        for model in MODELS[:1] if operation == "router_norm" else MODELS:
            yield from (RowCase(operation, t, spec(model).hidden_size) for t in tokens)


def cos_sin_cache(head_dim: int, device: str) -> torch.Tensor:
    """Cosines and sines [POSITIONS, head_dim] fp32; heads of 512 turn a quarter of themselves, as Gemma-4's do."""
    frequencies = 10_000.0 ** -torch.arange(0, 1, 2 / head_dim, device=device)
    if head_dim == 512:
        frequencies[head_dim // 8 :] = 0
    angles = torch.outer(torch.arange(POSITIONS, device=device, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def weights(rows: str, size: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Weights of a norm: 1 and -1 for steady rows, between -2 and 2 for the others."""
    drawn = 4 * torch.rand(size, generator=generator, device=generator.device) - 2
    return (drawn.sign() + (drawn == 0) if rows == "steady" else drawn).to(dtype)


def _normal(shape, dtype, generator):
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def _adversarial(shape, dtype, generator):
    """Zeros, subnormals, squares that overflow, an outlier, a constant, an infinity, a NaN, squares as small as eps."""
    x = torch.randn(shape, generator=generator, device=generator.device)
    info = torch.finfo(dtype)
    x[0::8] = 0
    x[1::8] *= info.smallest_normal / 8
    x[2::8] = x[2::8].sign() * info.max / 4
    x[3::8, 0] = min(1e6, info.max / 2)
    x[4::8] = x[4::8, :1]
    x[5::8, 1] = torch.inf
    x[6::8, -1] = torch.nan
    x[7::8] *= 1e-3
    return x.to(dtype)


ROWS = {"steady": _normal, "normal": _normal, "adversarial": _adversarial}
