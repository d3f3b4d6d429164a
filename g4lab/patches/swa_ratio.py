"""Opt-in patch `swa_ratio`: how SGLang splits KV memory between Gemma-4's full and sliding-window layers.

SGLang 0.5.21 gives the sliding pool 0.8 of the full pool's tokens, whatever the model. A request keeps all its tokens
in the full pool and little more than one window in the other, so long contexts fill the first while the second idles.
--swa-full-tokens-ratio always wins; without it $G4LAB_SWA_RATIO decides:

- unset: 0.15 for MoE models, SGLang's 0.8 for dense ones (pyc96/sglang#2, restricted to MoE in pyc96/sglang#10);
- a number in (0, 1]: that ratio;
- auto: the ratio at which both pools hold the same number of requests (g4lab.kvpool.best_ratio) of $G4LAB_SWA_WORKLOAD,
  PROMPT/OUTPUT in tokens (default 8000/1000), --max-running-requests of them at once (default 80).

It is a policy for a workload and changes which requests run together, so "all" leaves it out: beside the kernels it
would mix a scheduling gain, or loss, with theirs.
"""

from __future__ import annotations

import logging
import os

from g4lab.errors import BadInput, G4LabError, bad
from g4lab.gemma4.from_config import spec_of
from g4lab.kvpool import Scheduling, Workload, best_ratio
from g4lab.patches.counting import count, note
from g4lab.patches.registry import Device, Hook, Patch

ARCHITECTURES = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")
MOE_RATIO = 0.15
WORKLOAD = "8000/1000"
_HF_NAMES = {"swa_head_dim": "head_dim", "swa_num_key_value_heads": "num_key_value_heads"}
log = logging.getLogger("g4lab.patches")


def asked() -> float | str | None:
    """$G4LAB_SWA_RATIO: a ratio, "auto", or None where it is unset or empty. Raises BadInput."""
    text = os.environ.get("G4LAB_SWA_RATIO") or None
    if text in (None, "auto"):
        return text
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise bad("G4LAB_SWA_RATIO", text, "a number in (0, 1], or auto")
    return ratio


def asked_workload(concurrency: int) -> Workload:
    """$G4LAB_SWA_WORKLOAD, `concurrency` of its requests at once. Raises BadInput."""
    text = os.environ.get("G4LAB_SWA_WORKLOAD") or WORKLOAD
    try:
        return Workload.parse(text, concurrency)
    except BadInput as error:
        raise bad("G4LAB_SWA_WORKLOAD", text, f"PROMPT/OUTPUT in tokens, such as {WORKLOAD}") from error


def _declared(result, architecture, server_args, hf_config):
    """After SGLang collected what its models override in the arguments: one more override, or none."""
    if architecture not in ARCHITECTURES:
        return None
    args, unset = _resolving(server_args)
    ratio, why = _chosen(args, unset, getattr(hf_config, "text_config", hf_config).to_dict())
    count("swa_ratio")
    note("swa_ratio", {"ratio": ratio, "why": why})
    log.info("patch swa_ratio: swa_full_tokens_ratio %s, %s", "as it was" if ratio is None else ratio, why)
    return None if ratio is None else [*result, ("g4lab.swa_ratio", {"swa_full_tokens_ratio": ratio})]


def _resolving(server_args):
    """SGLang's view of its arguments with what is resolved so far, and the ratio there where nobody named one."""
    try:
        from sglang.srt.arg_groups.model_override_base import resolving_view
    except ImportError:  # SGLang 0.5.17, where a user's 0.8 cannot be told from the default
        from sglang.srt.arg_groups.overrides import resolved_view

        return resolved_view(server_args), type(server_args).swa_full_tokens_ratio
    return resolving_view(server_args), None


def _chosen(args, unset: float | None, text_config: dict) -> tuple[float | None, str]:
    """The ratio, None to leave SGLang's, and the reason in words."""
    if args.swa_full_tokens_ratio != unset:
        return None, f"the user's {args.swa_full_tokens_ratio}"
    wish = asked()
    if wish == "auto":
        return _planned(args, text_config)
    if wish is not None:
        return wish, "of G4LAB_SWA_RATIO"
    if text_config.get("num_experts"):
        return MOE_RATIO, "the default for MoE models"
    return None, "SGLang's default for a dense model"


def _planned(args, text_config: dict) -> tuple[float | None, str]:
    workload = asked_workload(args.max_running_requests or Workload.concurrency)
    scheduling = Scheduling(
        page_size=args.page_size or 1,
        chunked_prefill_size=max(args.chunked_prefill_size or 0, 0) or max(p + o for p, o in workload.requests),
        draft_tokens=args.speculative_num_draft_tokens or 0,
        overlap=not args.disable_overlap_schedule,
    )
    # SGLang has exchanged the dimensions of the two kinds of layers by now.
    text_config = text_config | {hf: text_config[ours] for ours, hf in _HF_NAMES.items() if ours in text_config}
    try:
        ratio = round(best_ratio(spec_of(text_config), workload, scheduling=scheduling).ratio, 3)
    except G4LabError as error:
        return None, f"no plan: {error}"
    (prompt, output), *_ = workload.requests
    return ratio, f"planned for {workload.concurrency} requests of {prompt}/{output} tokens"


def _declines(device: Device) -> str | None:
    try:
        if asked() == "auto":
            asked_workload(1)
    except BadInput as error:
        return str(error)
    return None


PATCH = Patch(
    name="swa_ratio",
    effect="sizes the sliding-window pool for MoE models (0.15), by G4LAB_SWA_RATIO, or by a planned workload (auto)",
    source="pyc96/sglang#2, restricted to MoE models in pyc96/sglang#10",
    hooks=(Hook("sglang.srt.arg_groups.overrides.collect_model_override_declarations", "after", _declared),),
    counts="times that SGLang resolved its arguments for a Gemma-4 model",
    opt_in=True,
    declines=_declines,
)
