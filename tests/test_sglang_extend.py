"""SGLang's extend attention with a tile of our choice: what its launcher really launches, and that nothing stays."""

from types import SimpleNamespace

import pytest
import torch

from g4lab import env
from g4lab.errors import Unavailable
from g4lab.tuning import sglang_extend

pytest.importorskip("sglang")
DEVICE = "cuda" if env.has_gpu() else "cpu"
TILE = SimpleNamespace(block_m=16, block_n=32, num_warps=2, num_stages=3)
HEADS, KV_HEADS, DIM, LENGTHS, PREFIXES = 2, 1, 64, (5, 19), (33, 0)


def forward(window=-1):
    """One ragged call of SGLang's function: its result, and the largest |value| it averages."""
    generator = torch.Generator().manual_seed(0)
    tokens, cached = sum(LENGTHS), sum(PREFIXES)

    def draw(count, heads):
        return torch.randn(count, heads, DIM, generator=generator).to(DEVICE, torch.float16)

    def offsets(lengths):
        return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(DEVICE)

    q, k, v = draw(tokens, HEADS), draw(tokens, KV_HEADS), draw(tokens, KV_HEADS)
    out = torch.empty_like(q)
    slots = torch.randperm(cached, generator=generator).to(DEVICE)
    buffers = draw(cached, KV_HEADS), draw(cached, KV_HEADS)
    sglang_extend.module().extend_attention_fwd(
        q, k, v, out, *buffers, offsets(LENGTHS), offsets(PREFIXES), slots, None, True, None, max(LENGTHS), 1.0, 1.0,
        sm_scale=0.125, sliding_window_size=window,
    )  # fmt: skip
    return out, max(v.abs().max(), buffers[1].abs().max())


class Spy:
    """A kernel that remembers its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launches.append((grid, kwargs))
            return self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture
def spy(monkeypatch):
    module = sglang_extend.module()
    seen = Spy(module._fwd_kernel)
    monkeypatch.setattr(module, "_fwd_kernel", seen)
    return seen


@pytest.mark.parametrize("window", [-1, 7])
def test_the_tile_is_launched_and_gone_afterwards(spy, window):
    """Another tile rounds the probabilities to fp16 under another running maximum: each result is off by at most half
    an eps of the values it averages, and half an eps of itself."""
    own, largest = forward(window)
    with sglang_extend.tiled(TILE):
        other, _ = forward(window)
    again, _ = forward(window)
    options = [
        {name: kwargs[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_N_PREFIX", "num_warps", "num_stages")}
        for _, kwargs in spy.launches
    ]
    wanted = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_N_PREFIX": 32, "num_warps": 2, "num_stages": 3}
    assert options[1] == wanted
    assert options[0] == options[2] != wanted
    assert spy.launches[1][0] == (2, HEADS, 2)  # 19 tokens in tiles of 16
    assert own.equal(again)
    assert (own - other).abs().max() <= torch.finfo(torch.float16).eps * (largest + own.abs().max())


def test_it_is_gone_after_an_error_too(spy):
    with pytest.raises(KeyError), sglang_extend.tiled(TILE):
        raise KeyError
    assert sglang_extend.module()._fwd_kernel is spy


def test_a_moved_name_is_said(monkeypatch):
    monkeypatch.delattr(sglang_extend.module(), sglang_extend.BLOCK_SIZES)
    with pytest.raises(Unavailable, match="has no _get_block_sizes_for_extend_attention"), sglang_extend.tiled(TILE):
        pass
