"""torch.profiler captures of a transformers model: forward passes of one phase, named as SGLang names its steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import patches as patching
from g4lab.errors import bad
from g4lab.gemma4.modules import routers
from g4lab.runners import captures
from g4lab.runners.models import load_model

if TYPE_CHECKING:
    import torch

WARMUP_STEPS = 2


def profile_transformers(
    model: str | Path | torch.nn.Module,
    phase: str = "prefill",
    batch: int = 1,
    prompt_len: int = 128,
    steps: int = 3,
    patches: str = "none",
    device: str | None = None,
    dtype: str | None = None,
    *,
    out: Path | str,
) -> Path:
    """Capture `steps` forward passes of one phase and nothing else, after two that warm up; return the trace's file.

    Prefill: every step computes `batch` fresh prompts. Decode: every step adds one token to each of `batch` sequences
    that began with `prompt_len` tokens, on one KV cache. All tokens are random and differ between sequences, so that a
    batch routes to as many experts as its tokens ask for. Shapes and stacks are not recorded; steps carry names such as
    "step[EXTEND bs=1 toks=128]" and "step[DECODE bs=8]".

    Args:
        model: what load_model takes, or a model already loaded (then `device` and `dtype` are its).
        patches: "none" or "router"; a given model is left as it was found.
        out: folder of the trace, NAME.trace.json.gz, and of NAME.provenance.json, which says what made it and, for a
            model with experts, how many of them a step of this phase used in every layer.

    Raises:
        BadInput: an unknown phase, model or patch, or a count below 1. Unavailable: no GPU, or too little memory.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    captures.check(phase, batch=batch, prompt_len=prompt_len, steps=steps)
    if patches not in ("none", "router"):
        raise bad("patches", patches, "none or router, the only patch for transformers")
    if isinstance(model, str | Path):
        name, model = Path(model).name, load_model(model, device, dtype)
    else:
        name = model.config.model_type
    parameter = next(model.parameters())
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if parameter.is_cuda else [])
    mark = f"step[EXTEND bs={batch} toks={batch * prompt_len}]" if phase == "prefill" else f"step[DECODE bs={batch}]"
    if patches == "router":
        patching.apply(model, patches)
    try:
        with torch.inference_mode():
            inputs = _inputs(model, phase, batch, prompt_len, WARMUP_STEPS + 1 + steps)
            with profile(activities=activities):  # the first capture of a process initialises the profiler
                for ids, cache in inputs[:WARMUP_STEPS]:  # compiles kernels, fills caches
                    _forward(model, ids, cache)
            load = _expert_load(model, *inputs[WARMUP_STEPS])
            with profile(activities=activities) as profiler:
                for ids, cache in inputs[-steps:]:
                    with record_function(mark):
                        _forward(model, ids, cache)
    finally:
        if patches == "router":
            patching.remove(model)
    stem = captures.stem(name, phase, batch, prompt_len, patches)
    file = Path(out) / (stem + captures.END)
    with tempfile.TemporaryDirectory(prefix="g4lab-profile-") as folder:
        profiler.export_chrome_trace(str(Path(folder) / "trace.json"))
        captures.publish((Path(folder) / "trace.json").read_bytes(), file)
    parameters = {
        "runner": "transformers",
        "model": name,
        "phase": phase,
        "batch": batch,
        "prompt_len": prompt_len,
        "steps": steps,
        "patches": patches,
        "device": str(parameter.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
    }
    captures.provenance(file.with_name(stem + ".provenance.json"), parameters, expert_load=load)
    return file


def _inputs(model, phase: str, batch: int, prompt_len: int, count: int) -> list[tuple[torch.Tensor, object]]:
    """(token ids, KV cache before them) of `count` forward passes; those of decode run in turn on one cache."""
    import torch

    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(3, vocabulary, (batch, length), generator=generator).to(device)

    if phase == "prefill":
        return [(tokens(prompt_len), None) for _ in range(count)]
    cache = _forward(model, tokens(prompt_len), None).past_key_values
    return [(tokens(1), cache) for _ in range(count)]


def _forward(model, ids: torch.Tensor, cache):
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _expert_load(model, ids: torch.Tensor, cache) -> list[dict[str, int]]:
    """How one more forward pass routes: as Server.expert_load, a row a MoE layer; none for a model without experts."""
    import torch

    rows = []

    def watch(router, inputs, outputs):
        ids, experts = outputs[2], router.config.num_experts
        per_expert = torch.bincount(ids.flatten(), minlength=experts)
        rows.append(
            {
                "layer": len(rows),
                "tokens": len(ids),
                "experts": experts,
                "used": int((per_expert > 0).sum()),
                "most_tokens_on_one": int(per_expert.max()),
            }
        )

    hooks = [router.register_forward_hook(watch) for router in routers(model).values()]
    try:
        _forward(model, ids, cache)
    finally:
        for hook in hooks:
            hook.remove()
    return rows
