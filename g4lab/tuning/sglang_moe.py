"""SGLang's expert layer outside its server, with the config files of a folder, without changing SGLang.

SGLang 0.5.21's `fused_experts` reads the published server arguments and the tensor-parallel group, which only a server
has, and looks configs up in $SGLANG_MOE_CONFIG_DIR once for the life of a process. `configured` gives it defaults for
the first two where nobody published any, and for each folder a lookup of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from g4lab.errors import Unavailable
from g4lab.kernels.moe_tiles import MoEConfig
from g4lab.tuning import moe_configs

MODULE = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe"
EXPERTS, LOOKUP, CHOICE = "fused_experts", "get_moe_configs", "try_get_optimal_moe_config"
GROUP = "get_tp_group"
_LOCK = threading.RLock()


def module():
    """SGLang's module of the expert layer.

    Raises:
        Unavailable: SGLang is not installed, or cannot be imported here, or names the function otherwise.
    """
    return _imported(MODULE, EXPERTS)


def _lookups():
    return _imported(f"{MODULE}_triton_config", LOOKUP, CHOICE)


def _imported(name: str, *needed: str):
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"SGLang's {EXPERTS} cannot be imported: {error}") from error
    if missing := [each for each in needed if not hasattr(found, each)]:
        raise Unavailable(f"this SGLang's {name} has no {missing[0]}")
    return found


@functools.cache
def _lookup(folder: Path | None):
    """SGLang's own lookup with a cache for one folder, which a call from elsewhere neither fills nor sees."""
    return functools.cache(getattr(_lookups(), LOOKUP).__wrapped__)


@contextlib.contextmanager
def configured(folder: Path | None = None) -> Iterator[None]:
    """SGLang's `fused_experts` can run inside, with the config files under `folder`, or with those it comes with.

    Takes effect on launches, so under a CUDA graph at the capture. The environment variable and the lookup are the
    process's: blocks in two threads wait for each other.

    Raises:
        Unavailable: as `module`.
    """
    home = _lookups()
    from sglang.srt.runtime_context import get_context, get_exec, get_parallel

    with _LOCK, contextlib.ExitStack() as after:
        try:
            get_exec()
        except ValueError:  # nobody published; what is published stays, for SGLang reads it in later launches, too
            get_context().override_server_args().install()
        after.enter_context(get_parallel().override(tp_group=None))
        if hasattr(experts := module(), GROUP):  # 0.5.17 asks by this name
            after.callback(setattr, experts, GROUP, getattr(experts, GROUP))
            setattr(experts, GROUP, lambda: None)
        before = os.environ.pop(moe_configs.VARIABLE, None), getattr(home, LOOKUP)
        after.callback(_restore, home, *before)
        if folder is not None:
            os.environ[moe_configs.VARIABLE] = str(folder)
        setattr(home, LOOKUP, _lookup(folder))
        yield


def _restore(home, variable: str | None, lookup) -> None:
    setattr(home, LOOKUP, lookup)
    os.environ.pop(moe_configs.VARIABLE, None)
    if variable is not None:
        os.environ[moe_configs.VARIABLE] = variable


def has_files(num_experts: int, width: int, folder: Path | None = None) -> bool:
    """Whether SGLang finds a file for this GPU and this layer in bf16 or fp16 under `folder`, of any Triton version.
    Raises Unavailable as `configured`."""
    with configured(folder):
        return getattr(_lookups(), LOOKUP)(num_experts, width, None, 0, 0, False, down_moe=False) is not None


def choice(
    tokens: int, hidden: int, width: int, num_experts: int, top_k: int, folder: Path | None = None
) -> tuple[dict, dict | None]:
    """SGLang's launch options for this many tokens in bf16 or fp16: gate_up's, and down's where it has others.
    Raises Unavailable as `configured`."""
    shapes = (num_experts, 2 * width, hidden), (num_experts, hidden, width)
    with configured(folder):
        options, (down, _) = getattr(_lookups(), CHOICE)(*shapes, top_k, None, tokens, return_down_config=True)
    return options, down


def described(options: dict, down: dict | None) -> str:
    """Launch options in a word: block sizes m x n x k, group_m, warps and stages, of gate_up and of down."""
    return _text(options) if down in (None, options) else f"{_text(options)}, down {_text(down)}"


def described_config(config: MoEConfig) -> str:
    """As `described`, of our own."""
    return described(*(moe_configs.entry(tile) for tile in (config.gate_up, config.down)))


def _text(options: dict) -> str:
    m, n, k, group = (options[name] for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"))
    text = f"{m}x{n}x{k} g{group}"
    if "num_warps" in options:  # SGLang's default leaves these to Triton
        text += f" w{options['num_warps']} s{options['num_stages']}"
    return text + " TMA" * bool(options.get(moe_configs.TMA))
