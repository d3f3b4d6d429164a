"""Prefill and greedy decode of a transformers model in this process, step by step and timed step by step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import patches as patching
from g4lab.errors import bad
from g4lab.runners.models import load_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunResult:
    """One run: for each prompt its new tokens, its prefill time and the time of every decode step, in ms.

    `clock`: "cuda events" (the GPU's own time) or "perf_counter" (a CPU; interpreted kernels' time is no kernel time).
    `patched_calls`: calls of patched modules, the warm-up included; 0 without patches.
    """

    tokens: list[list[int]]
    prompt_tokens: list[int]
    prefill_ms: list[float]
    decode_ms: list[list[float]]
    device: str
    dtype: str
    patches: str
    clock: str
    patched_calls: int

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode steps a second over all prompts, one sequence at a time; NaN where nothing was decoded."""
        steps = [ms for each in self.decode_ms for ms in each]
        return 1e3 * len(steps) / sum(steps) if steps else float("nan")

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second over all prompts."""
        return 1e3 * sum(self.prompt_tokens) / sum(self.prefill_ms)


def transformers_run(
    model: str | Path | torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    patches: str = "none",
    device: str | None = None,
    dtype: str | None = None,
) -> RunResult:
    """Decode every prompt greedily, one after another with the KV cache, ending only after `max_new_tokens`.

    Args:
        model: what load_model takes, or a model already loaded (then `device` and `dtype` are its).
        prompts: token ids.
        patches: "none" or "router"; a given model is left as it was found.
        device: default the GPU where there is one. dtype: default float32 on a CPU, else the checkpoint's.

    Raises:
        BadInput: no prompt, an empty prompt, a token outside the vocabulary, or an unknown model or patch.
    """
    import torch

    if max_new_tokens < 1:
        raise bad("max_new_tokens", max_new_tokens, "at least 1")
    if patches not in ("none", "router"):
        raise bad("patches", patches, "none or router, the only patch for transformers")
    if isinstance(model, str | Path):
        model = load_model(model, device, dtype)
    vocabulary = model.config.get_text_config().vocab_size
    if not prompts:
        raise bad("prompts", prompts, "at least one")
    for index, prompt in enumerate(prompts):
        if not prompt or not all(0 <= token < vocabulary for token in prompt):
            raise bad(f"prompts[{index}]", list(prompt)[:8], f"token ids from 0 to {vocabulary - 1}, at least one")
    calls: list[str] = []
    patched = patching.apply(model, patches) if patches == "router" else []
    hooks = [model.get_submodule(name).register_forward_hook(lambda *_: calls.append("router")) for name in patched]
    try:
        with torch.inference_mode():
            _decode(model, prompts[0], min(2, max_new_tokens))  # compiles kernels, fills caches
            runs = [_decode(model, prompt, max_new_tokens) for prompt in prompts]
    finally:
        for hook in hooks:
            hook.remove()
        if patched:
            patching.remove(model)
    parameter = next(model.parameters())
    return RunResult(
        tokens=[tokens for tokens, _ in runs],
        prompt_tokens=[len(prompt) for prompt in prompts],
        prefill_ms=[times[0] for _, times in runs],
        decode_ms=[times[1:] for _, times in runs],
        device=str(parameter.device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        patches=patches,
        clock="cuda events" if parameter.is_cuda else "perf_counter",
        patched_calls=len(calls),
    )


def _decode(model: torch.nn.Module, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """`count` greedy tokens and the ms of each step, the prefill first. Nothing waits for the GPU between steps."""
    import torch

    device = next(model.parameters()).device
    ids, cache, tokens, marks = torch.tensor([list(prompt)], device=device), None, [], [_mark(device)]
    for _ in range(count):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        tokens.append(ids)
        marks.append(_mark(device))
    new = torch.cat(tokens, dim=1)[0].tolist()  # waits for the GPU
    return new, [_between(a, b) for a, b in itertools.pairwise(marks)]


def _mark(device: torch.device):
    import torch

    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start, end) -> float:
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
