"""The installed SGLang's own pool configurator, made without a server, to compare the plan with."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from g4lab.errors import BadInput
from g4lab.gemma4 import Spec
from g4lab.gemma4 import spec as spec_named
from g4lab.kvpool.plan import ASSISTANT_LAYERS, plan

if TYPE_CHECKING:
    import pandas as pd


def model_config(spec: Spec | str):
    """SGLang's ModelConfig of a model, from a configuration as the public checkpoints have it."""
    from sglang.srt.configs.model_config import ModelConfig
    from transformers import Gemma4Config

    spec = spec_named(spec) if isinstance(spec, str) else spec
    made = Gemma4Config(text_config=spec.hf_config().to_dict(), vision_config=None, audio_config=None)
    made.architectures = ["Gemma4ForConditionalGeneration"]
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return ModelConfig(folder)


@contextlib.contextmanager
def settings(tp: int = 1, **arguments) -> Iterator[None]:
    """Inside, SGLang's published configuration has these server arguments."""
    from sglang.srt.runtime_context import get_context

    with get_context().override_server_args(tp_size=tp, **arguments):
        yield


def configurator(config, *, ratio: float, page_size: int = 1, tp: int = 1, dtype_bytes: int = 2, draft_layers: int = 0):
    """SGLang's HybridSWAPoolConfigurator for a ModelConfig, with SGLang's own information about its layers."""
    import torch
    from sglang.srt.model_executor.model_runner_components.layer_setup import resolve_layer_indices
    from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import SpecAuxHiddenStateConfig
    from sglang.srt.model_executor.pool_configurator import HybridSWAPoolConfigurator
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    model = types.SimpleNamespace(config=config.hf_config)
    kvc = types.SimpleNamespace(
        kv_cache_dtype_str="auto",
        kv_cache_dtype={1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32}[dtype_bytes],
        model_config=config,
        layer_info=resolve_layer_indices(model=model, model_config=config, is_draft_worker=False),
        sliding_window_size=config.sliding_window_size - 1,  # as the model's class says
        page_size=page_size,
        spec_algorithm=SpeculativeAlgorithm.FROZEN_KV_MTP if draft_layers else SpeculativeAlgorithm.NONE,
        is_draft_worker=False,
        spec_aux_config=SpecAuxHiddenStateConfig(eagle_draft_num_layers=draft_layers or None),
    )
    with settings(tp, swa_full_tokens_ratio=ratio, page_size=page_size):
        return HybridSWAPoolConfigurator(kvc)


def compare(
    models: Sequence[str],
    kv_bytes: Sequence[int],
    ratios: Sequence[float] = (0.05, 0.15, 1 / 3, 0.8, 1.0),
    page_sizes: Sequence[int] = (1, 16, 64),
    tps: Sequence[int] = (1, 2, 4, 8),
) -> pd.DataFrame:
    """A row for each model: configurations whose pools are SGLang's to the token, those that both refuse, and others.

    Without and with an MTP assistant. Ranks that a model's heads cannot be split by are left out.
    """
    import pandas as pd

    rows = []
    for name in models:
        config, verdicts = model_config(name), []
        fitting = [tp for tp in tps if spec_named(name).num_attention_heads % tp == 0]
        for ratio, page, tp, draft in itertools.product(ratios, page_sizes, fitting, (0, ASSISTANT_LAYERS)):
            options = {"ratio": ratio, "page_size": page, "tp": tp, "draft_layers": draft}
            theirs = configurator(config, **options)
            verdicts += [_verdict(theirs, name, memory, options) for memory in kv_bytes]
        rows.append({"model": name, **{kind: verdicts.count(kind) for kind in ("equal", "both refuse", "different")}})
    return pd.DataFrame(rows)


def _verdict(theirs, name: str, memory: int, options: dict) -> str:
    try:
        sizes = theirs.calculate_pool_sizes(memory, options["page_size"])
        expected = sizes.full_max_total_num_tokens, sizes.swa_max_total_num_tokens
    except ValueError:  # its floor
        expected = None
    try:
        made = plan(name, memory, **options)
        ours = made.full_tokens, made.swa_tokens
    except BadInput:
        ours = None
    if ours != expected:
        return "different"
    return "equal" if ours else "both refuse"
