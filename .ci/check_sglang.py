"""The patches on another SGLang than CI's: its real server on the CPU, tokens against transformers, patch by patch.

Build the environment once, outside of the checkout; 0.5.17 wants torch 2.11, and Triton 3.6's interpreter NumPy < 2.4:

    OTHER=a-new-folder; python3.11 -m venv $OTHER    # in the checkout
    $OTHER/bin/pip install "torch===2.11.0" "torchvision===0.26.0"
    grep -vE '^(#|torch|triton|nvidia|sglang|cuda-|numpy)' requirements.lock > $OTHER/rest.txt
    $OTHER/bin/pip install --no-deps -r $OTHER/rest.txt "numpy<2.4" sglang==0.5.17
    $OTHER/bin/pip install --no-deps -e .
    $OTHER/bin/python .ci/check_sglang.py                    # all of SETS; or name some: all mtp router

One line for each set of patches: which are on, which were skipped and why, how often each was called, and whether the
greedy tokens are those of transformers in fp32. Exits 1 where they are not.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.patches import REGISTRY, parse, targets_report
from g4lab.runners import sglang_server
from g4lab.runners.server_command import STANDIN

PROMPTS, NEW = (8, 70), 6  # the tiny twins' window is 64
OPT_IN = "default,kv_sentinel,routed_experts,expert_load,kv_layers,swa_ratio,text_only"
SETS = {"default": "default", "all": "all", "mtp": "all", "opt-in": OPT_IN} | {
    name: f"default,{name}" for name, patch in REGISTRY.items() if not (patch.default_on or patch.opt_in)
}
# SGLang 0.5.17 refuses Gemma-4's experts on a CPU, although the code that it refuses to call computes them.
PLUGIN = """
def register():
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def experts(original, method, layer, dispatch_output):
        if method.moe_runner_config.activation != "gelu":
            return original(method, layer, dispatch_output)
        from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        x, routing = dispatch_output.hidden_states, dispatch_output.topk_output
        return StandardCombineInput(moe_forward_native(layer, x, routing, method.moe_runner_config))

    target = "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod.apply"
    HookRegistry.register(target, experts, HookType.AROUND)
"""


def plugin(folder: Path) -> dict[str, str]:
    """Write the plugin that lets a CPU compute the experts; the variables that load it beside g4lab's."""
    (folder / "cpu_experts.py").write_text(PLUGIN)
    info = folder / "cpu_experts-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-experts\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\ncpu_experts = cpu_experts:register\n")
    return {"SGLANG_PLUGINS": "g4lab,cpu_experts", "PYTHONPATH": f"{STANDIN}:{folder}"}


def prompts_and_tokens(checkpoint: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what transformers adds to each in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for length in PROMPTS:
        ids = torch.randint(3, spec("tiny-moe").vocab_size, (1, length), generator=generator)
        tokens = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        pairs.append((ids[0].tolist(), tokens[0, length:].tolist()))
    return pairs


def check(name: str, pairs, env: dict[str, str], folder: Path) -> dict:
    """One server with the patches of set `name`."""
    missing = {row.patch for row in targets_report() if not row.found}
    args = ["--enable-return-routed-experts"] if "routed_experts" in {*parse(SETS[name])} - missing else []
    draft = write_assistant(spec("tiny-moe"), ensure("tiny-moe"), folder / "assistant") if name == "mtp" else None
    with sglang_server("tiny-moe", SETS[name], args, draft=draft, attention_backend="triton", env=env) as server:
        right = [server.generate(ids, NEW, ignore_eos=True) == tokens for ids, tokens in pairs]
        states, counts = server.states(), server.counters()
    chosen = parse(SETS[name])
    return {
        "set": name,
        "tokens equal": all(right),
        "not on": {patch: states[patch] for patch in chosen if states[patch] != "on"},
        "calls": {patch: counts.get(patch, 0) for patch in chosen if states[patch] == "on"},
    }


def main(names: list[str]) -> int:
    for row in targets_report():
        if not row.found:
            print(f"{row.patch}: {row.why}")
    right = True
    with tempfile.TemporaryDirectory() as folder:
        env = plugin(Path(folder))
        pairs = prompts_and_tokens(ensure("tiny-moe"))
        for name in names or SETS:
            result = check(name, pairs, env, Path(folder))
            print(json.dumps(result), flush=True)
            right &= result["tokens equal"]
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
