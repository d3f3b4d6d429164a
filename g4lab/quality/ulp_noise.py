"""Changes of the router's input in its last bits: noise of a given size in ulps, and its norm's named roundings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from g4lab.errors import bad

# (hidden [T, H], scale [H], the router's own input [T, H]) -> the input that its projection gets instead.
Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def nudge(x: torch.Tensor, ulps: int, generator: torch.Generator, share: float = 1.0) -> torch.Tensor:
    """`x` with a random `share` of its elements moved by `ulps` representable values, up or down with even chances.

    x: bf16, fp16 or fp32, finite, any shape. The moves stop at the dtype's largest finite values.

    Raises:
        BadInput: another dtype, negative `ulps`, or a `share` outside of 0 to 1.
    """
    if x.dtype not in _BITS:
        raise bad("x", x.dtype, "bfloat16, float16 or float32")
    if ulps < 0:
        raise bad("ulps", ulps, "zero or more")
    if not 0 <= share <= 1:
        raise bad("share", share, "between 0 and 1")
    ints = _BITS[x.dtype]
    signs = 2 * torch.randint(0, 2, x.shape, generator=generator) - 1
    moved = torch.rand(x.shape, generator=generator) < share
    step = (signs * moved * ulps).to(x.device)
    # Sign and magnitude as one integer that counts representable values from zero.
    bits, lowest = x.contiguous().view(ints).long(), torch.iinfo(ints).min
    largest = torch.tensor(torch.finfo(x.dtype).max, dtype=x.dtype).view(ints).item()
    count = torch.where(bits < 0, lowest - bits, bits) + step
    count = count.clamp(-largest, largest)
    return torch.where(count < 0, lowest - count, count).to(ints).view(x.dtype)


@dataclass(frozen=True)
class Noise:
    """`nudge` as a Change: every call draws on, a copy made by `make` starts from the seed again."""

    ulps: int
    share: float = 1.0
    seed: int = 0

    @property
    def mean_ulps(self) -> float:
        """Mean size of the move over all elements, in ulps."""
        return self.ulps * self.share

    def make(self) -> Change:
        generator = torch.Generator().manual_seed(self.seed)
        return lambda hidden, scale, own: nudge(own, self.ulps, generator, self.share)


@dataclass(frozen=True)
class Rounding:
    """The router norm with one of `g4lab.kernels.router_norm.ROUNDINGS`, as a Change: its eager reference."""

    name: str
    eps: float = 1e-6

    def make(self) -> Change:
        from g4lab.kernels.router_norm import router_norm_reference

        reference = functools.partial(router_norm_reference, eps=self.eps, rounding=self.name)
        return lambda hidden, scale, own: reference(hidden, scale)


def root_size_error(hidden_size: int, dtype: torch.dtype) -> float:
    """Relative error of hidden_size**-0.5 as a tensor of `dtype`: what SGLang 0.5.21 multiplies the router's scale by.

    SGLang makes that tensor while the default dtype is the model's (`Gemma4Router.__init__` under the loader's
    set_default_torch_dtype); transformers multiplies by a Python float. Every router logit of a model is off by this
    one factor, so it is a change of temperature: it flips no choice by itself.
    """
    exact = hidden_size**-0.5
    return torch.tensor(exact, dtype=dtype).item() / exact - 1
