"""The patch registry, its grammar and counters, and the opt-in patches for random weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g4lab import patches
from g4lab.errors import BadInput, G4LabError
from g4lab.patches import REGISTRY, choices, counting, dummy_weights, parse
from g4lab.patches.registry import Hook, Patch, build
from g4lab.patches.sglang_targets import place

FIXES = ("router_scale", "swa_decode_window", "mtp_pp_proxy", "moe_activation", "torch_native_swa", "frozen_kv_swa")
KERNELS = (
    "router",
    "router_norm",
    "qkv_norm",
    "kv_single_gemm",
    "qkv_norm_rope_kv",
    "residual_norm",
    "extend_tiles",
    "extend_attention",
    "fused_moe",
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, FIXES),
        ("", FIXES),
        ("default", FIXES),
        ("none", ()),
        ("all", (*KERNELS, *FIXES)),
        ("router", ("router", *FIXES)),
        ("none,router", ("router",)),
        ("router,-router_scale", ("router", *FIXES[1:])),
        (" all , -router , spread_dummy ", (*KERNELS[1:], *FIXES, "spread_dummy")),
        ("router,-router", FIXES),
        ("none,-router", ()),
    ],
)
def test_grammar(text, names):
    assert parse(text) == names


@pytest.mark.parametrize("text", ["routr", "router,none", "-all", "router scale", "default,all"])
def test_unknown_patch_is_one_line_that_lists_the_known(text):
    with pytest.raises(BadInput) as error:
        parse(text)
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in REGISTRY)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(REGISTRY)))))
def test_the_last_word_on_a_patch_counts(words):
    text = ",".join(["none", *("-" * minus + name for minus, name in words)])
    last = {name: minus for minus, name in words}
    assert set(parse(text)) == {name for name, minus in last.items() if not minus}


def test_every_patch_says_what_it_is():
    for name, patch in REGISTRY.items():
        assert patch.name == name
        assert all((patch.effect, patch.source, patch.counts, patch.requires, patch.hooks))
        assert "\n" not in patch.effect
        assert not (patch.default_on and patch.opt_in)


def _patch(name, kind="replace", target="a.b", device=None):
    return Patch(name, "effect", "source", (Hook(target, kind, print, device),), "calls")


def test_conflicting_registrations_raise():
    with pytest.raises(G4LabError, match="one and two both replace"):
        build([_patch("one"), _patch("two")])
    with pytest.raises(G4LabError, match="two patches are named one"):
        build([_patch("one"), _patch("one", target="c.d")])
    assert set(build([_patch("one"), _patch("two", kind="around")])) == {"one", "two"}


def test_router_patch_hooks_one_path_for_each_device():
    (cuda,) = REGISTRY["router"].hooks_on("cuda")
    (cpu,) = REGISTRY["router"].hooks_on("cpu")
    assert cuda.kind == "replace"
    assert cuda.target.endswith("gemma4_fused_routing")
    assert cpu.target.endswith("Gemma4MoE.__init__")


def test_router_patch_declines_with_the_reason(monkeypatch):
    declines = REGISTRY["router"].declines
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in declines("cpu")
    assert declines("cuda") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert declines("cpu") is None
    monkeypatch.setenv("G4LAB_ROUTER_ROUNDING", "bf16")
    choices.forget()
    try:
        assert "'bf16', expected eager or fp32" in declines("cuda")
    finally:
        choices.forget()


COUNTING = """
import os, sys, time
from g4lab.patches import counting
counting.set_state("router", sys.argv[1])
for _ in range(1000):
    counting.count("router")
counting.note("expert_load", [int(sys.argv[2])])
if os.fork() == 0:
    counting.count("forked")
    time.sleep(2 * counting.INTERVAL_S)
    os._exit(0)
os.wait()
time.sleep(2 * counting.INTERVAL_S)
os.kill(os.getpid(), 9)
"""


def test_counters_of_processes_add_up_although_they_are_killed(tmp_path):
    env = os.environ | {"G4LAB_COUNTERS_DIR": str(tmp_path / "counters")}
    runs = [subprocess.Popen([sys.executable, "-c", COUNTING, *args], env=env) for args in (("on", "1"), ("off", "2"))]
    assert [run.wait(60) for run in runs] == [-9, -9]
    assert patches.counters(tmp_path / "counters") == {"router": 2000, "forked": 2}
    assert patches.states(tmp_path / "counters") == {"router": "off"}
    assert sorted(patches.notes(tmp_path / "counters", "expert_load")) == [[1], [2]]


def test_counting_writes_nothing_where_no_folder_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("G4LAB_COUNTERS_DIR", raising=False)
    counting.count("test_only")
    assert patches.counters(tmp_path / "nothing") == {}


def test_targets_are_where_the_installed_sglang_has_them():
    rows = patches.targets_report()
    assert {row.patch for row in rows} == set(REGISTRY)
    assert [row for row in rows if not row.found] == []


def test_a_missing_target_is_named(monkeypatch):
    targets = {
        "m": "sglang.srt.no_such_module.f",
        "c": "sglang.srt.models.gemma4_causal.NoClass.forward",
        "f": "sglang.srt.models.gemma4_causal.Gemma4Router.no_method",
    }
    fake = build(_patch(name, target=target) for name, target in targets.items())
    monkeypatch.setattr("g4lab.patches.sglang_targets.REGISTRY", fake)
    why = {row.patch: row.why for row in patches.targets_report()}
    assert why["m"] == "no module sglang/srt/no_such_module.py"
    assert why["c"] == "sglang/srt/models/gemma4_causal.py defines no NoClass.forward"
    assert why["f"] == "sglang/srt/models/gemma4_causal.py defines no Gemma4Router.no_method"


@pytest.fixture
def an_older_sglang(tmp_path, monkeypatch):
    """An SGLang that calls things otherwise, as source and as a package on the path."""
    module = tmp_path / "old_sglang" / "srt" / "fused.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    module.write_text(
        "try:\n    from json import dumps as old_name\nexcept ImportError:\n    pass\n"
        "class Info:\n    layers: int\n    layers = 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "old_sglang"


_HOOKS = {
    "newest": Hook("old_sglang.srt.fused.Info", "around", print, earlier=("old_sglang.srt.fused.old_name",)),
    "earlier": Hook("old_sglang.srt.gone.f", "around", print, earlier=("old_sglang.srt.fused.old_name",)),
    "needed": Hook("old_sglang.srt.fused.Info", "after", print, needs=("old_sglang.srt.fused.Info.layers",)),
    "no name": Hook("old_sglang.srt.gone.f", "around", print, earlier=("old_sglang.srt.fused.other",)),
    "no need": Hook("old_sglang.srt.fused.Info", "after", print, needs=("old_sglang.srt.fused.Info.heads",)),
}
_TAKEN = {"newest": "Info", "earlier": "old_name", "needed": "Info", "no name": None, "no need": None}


def test_a_hook_takes_the_first_name_that_is_there_and_needs_what_it_uses(an_older_sglang, monkeypatch):
    fake = build(Patch(name, "effect", "source", (hook,), "calls") for name, hook in _HOOKS.items())
    monkeypatch.setattr("g4lab.patches.sglang_targets.REGISTRY", fake)
    rows = {row.patch: row for row in patches.targets_report(an_older_sglang)}
    for name, hook in _HOOKS.items():
        if _TAKEN[name] is None:
            assert not rows[name].found
            with pytest.raises(LookupError):
                place(hook)
        else:
            assert (rows[name].target, rows[name].why) == (f"old_sglang.srt.fused.{_TAKEN[name]}", None)
            assert place(hook)[0] == rows[name].target
    assert rows["no name"].why == "no module old_sglang/srt/gone.py"
    assert rows["no need"].why == "old_sglang/srt/fused.py defines no Info.heads"


def test_a_folder_without_sglang_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"package: got .* the folder sglang of an unpacked SGLang"):
        patches.targets_report(tmp_path)


def test_two_replacements_of_one_name_conflict_under_an_earlier_name_too():
    hook = Hook("new.name", "replace", print, earlier=("a.b",))
    with pytest.raises(G4LabError, match=r"one and two both replace a\.b"):
        build([_patch("one"), Patch("two", "effect", "source", (hook,), "calls")])


class _Weights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(64, 64, bias=False)
        self.twin = torch.nn.Linear(64, 64, bias=False)
        self.norm = torch.nn.RMSNorm(64)
        self.post_feedforward_layernorm = torch.nn.RMSNorm(64)
        self.per_expert_scale = torch.nn.Parameter(torch.zeros(8))
        self.fp8 = torch.nn.Parameter(torch.zeros(64, 64).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("counter", torch.arange(3))


def test_spread_dummy_weights_differ_by_tensor_and_repeat_by_seed():
    first, second = _Weights(), _Weights()
    with torch.no_grad():
        dummy_weights._spread(first)
        dummy_weights._spread(second)
    assert not torch.equal(first.proj.weight, first.twin.weight)
    assert 0.9 * dummy_weights.SPAN < first.proj.weight.abs().max() <= dummy_weights.SPAN
    assert first.fp8.float().unique().numel() > 20
    assert set(first.norm.weight.tolist()) == set(first.per_expert_scale.tolist()) == {1.0}
    assert first.post_feedforward_layernorm.weight.unique().item() == pytest.approx(dummy_weights.CLOSING_NORM)
    assert first.counter.tolist() == [0, 1, 2]
    for name, value in first.state_dict().items():
        assert torch.equal(value.float(), second.state_dict()[name].float()), name


def test_expert_load_keeps_the_largest_batch(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(dummy_weights, "_load", {})
    monkeypatch.setattr(counting, "_notes", {})

    def step(ids, layer):
        dummy_weights._watch(
            SimpleNamespace(topk_ids=torch.tensor(ids)), None, torch.zeros(len(ids), 4), layer_id=layer
        )

    step([[0, 1], [0, 2], [0, -1]], 3)
    step([[3, 1]], 3)  # smaller: not kept
    step([[3, 1], [3, 1]], 0)
    rows = json.loads(json.dumps(counting._notes["expert_load"]))
    assert rows == [
        {"layer": 0, "tokens": 2, "experts": 4, "used": 2, "most_tokens_on_one": 2},
        {"layer": 3, "tokens": 3, "experts": 4, "used": 3, "most_tokens_on_one": 3},
    ]
