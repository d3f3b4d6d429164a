"""The patches swa_ratio and text_only: in SGLang's own argument resolution, and on its real server.

The six cases of pyc96/sglang#2 and #10: the MoE default, the dense default, the user's ratio on both, and both served.
"""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
import requests

from g4lab import children, env
from g4lab.gemma4 import spec
from g4lab.gemma4.checkpoint import ensure
from g4lab.gemma4.multimodal import multimodal_config, write_multimodal
from g4lab.gemma4.towers import tower_bytes
from g4lab.kvpool import Scheduling, Workload, best_ratio
from g4lab.patches import counting, parse, swa_ratio
from g4lab.quality.tokens import random_prompts
from g4lab.runners import forks, sglang_server, transformers_run
from g4lab.runners.server import _IMPORTS
from g4lab.runners.server_command import server_command

on_cpu_server = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server; a GPU's pools are compared in 30_serving"),
]
NEW_TOKENS = 8


def test_both_are_asked_for_by_name_only():
    assert not {"swa_ratio", "text_only"} & {*parse("all"), *parse("default")}
    assert parse("none,text_only,swa_ratio") == ("swa_ratio", "text_only")


@pytest.mark.parametrize("ratio", ["0", "-0.1", "1.1", "nan", "inf", "0,15", "automatic"])
def test_a_bad_ratio_declines_in_one_line(monkeypatch, ratio):
    monkeypatch.setenv("G4LAB_SWA_RATIO", ratio)
    assert swa_ratio.PATCH.declines("cpu") == f"G4LAB_SWA_RATIO: got {ratio!r}, expected a number in (0, 1], or auto"


@pytest.mark.parametrize("workload", ["8000", "8000/0", "0/1000", "8k/1k", "8000/1000/1"])
def test_a_bad_workload_declines_in_one_line(monkeypatch, workload):
    monkeypatch.setenv("G4LAB_SWA_WORKLOAD", workload)
    assert swa_ratio.PATCH.declines("cpu") is None  # nobody asked for a plan
    monkeypatch.setenv("G4LAB_SWA_RATIO", "auto")
    why = swa_ratio.PATCH.declines("cpu")
    assert why == f"G4LAB_SWA_WORKLOAD: got {workload!r}, expected PROMPT/OUTPUT in tokens, such as 8000/1000"


@pytest.mark.parametrize(("text", "wish"), [(None, None), ("", None), ("auto", "auto"), ("1", 1.0), ("0.15", 0.15)])
def test_good_ratios(monkeypatch, text, wish):
    monkeypatch.delenv("G4LAB_SWA_RATIO", raising=False)
    if text is not None:
        monkeypatch.setenv("G4LAB_SWA_RATIO", text)
    assert swa_ratio.asked() == wish
    assert swa_ratio.PATCH.declines("cuda") is None


def test_a_model_of_another_family_is_left_alone():
    assert swa_ratio._declared([("x", {})], "Gemma3ForConditionalGeneration", None, None) is None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> a folder with a config.json, text-only and, with "mm-" before the name, multimodal."""
    folder = tmp_path_factory.mktemp("models")
    names = ("26b-a4b", "31b", "e4b")
    made = {}
    for name in names:
        for kind, config in (("", spec(name).hf_config()), ("mm-", multimodal_config(spec(name)))):
            made[kind + name] = folder / (kind + name)
            config.save_pretrained(made[kind + name])
    return made


@pytest.fixture(scope="module")
def resolved(models, tmp_path_factory):
    """model -> case -> what SGLang resolved, with both patches in."""
    asks = {
        "unset": {},
        "user's": {"args": {"swa_full_tokens_ratio": 0.5}, "env": {"G4LAB_SWA_RATIO": "0.3"}},
        "user's default": {"args": {"swa_full_tokens_ratio": 0.8}},
        "number": {"env": {"G4LAB_SWA_RATIO": "0.3"}},
        "auto": {"env": {"G4LAB_SWA_RATIO": "auto"}},
        "short": {
            "args": {"max_running_requests": 32, "page_size": 16, "chunked_prefill_size": 4096},
            "env": {"G4LAB_SWA_RATIO": "auto", "G4LAB_SWA_WORKLOAD": "1000/1000"},
        },
        "images": {"args": {"enable_multimodal": True}},
        "their flag": {"args": {"language_model_only": True}},
        "their flag twice": {"args": {"language_model_only": True, "mm_enable_dp_encoder": True}},
    }
    cases = {}
    for model, path in models.items():
        for name, ask in asks.items():
            if "their flag" not in name or model == "mm-31b":
                cases[f"{model} {name}"] = {"args": {"model_path": str(path), **ask.get("args", {})}}
                cases[f"{model} {name}"]["env"] = ask.get("env", {})
    folder = tmp_path_factory.mktemp("arguments")
    launch = server_command("tiny-moe", "none,swa_ratio,text_only", folder=folder)
    log = folder / "log"
    command = (sys.executable, "-m", "tests.server_arguments", json.dumps(cases))
    process = forks.start(command, imports=_IMPORTS, log=log, env=launch.env)
    try:
        assert process.wait(120) == 0, children.last_lines(log)
    finally:
        children.stop(process)
    said = json.loads(log.read_text().splitlines()[-1])
    return {model: {n: said[f"{model} {n}"] for n in asks if f"{model} {n}" in said} for model in models}


@pytest.mark.server
@pytest.mark.parametrize("kind", ["", "mm-"])
class TestResolution:
    def test_1_moe_default_is_overridden(self, resolved, kind):
        case = resolved[f"{kind}26b-a4b"]["unset"]
        assert (case["swa_full_tokens_ratio"], case["why"]) == (0.15, "the default for MoE models")

    @pytest.mark.parametrize("model", ["31b", "e4b"])
    def test_2_dense_default_is_preserved(self, resolved, kind, model):
        case = resolved[kind + model]["unset"]
        assert (case["swa_full_tokens_ratio"], case["why"]) == (0.8, "SGLang's default for a dense model")

    @pytest.mark.parametrize("model", ["26b-a4b", "31b", "e4b"])
    def test_3_4_the_users_ratio_is_preserved(self, resolved, kind, model):
        assert resolved[kind + model]["user's"]["swa_full_tokens_ratio"] == 0.5
        assert resolved[kind + model]["user's default"]["swa_full_tokens_ratio"] == 0.8

    @pytest.mark.parametrize("model", ["26b-a4b", "31b", "e4b"])
    def test_a_number(self, resolved, kind, model):
        case = resolved[kind + model]["number"]
        assert (case["swa_full_tokens_ratio"], case["why"]) == (0.3, "of G4LAB_SWA_RATIO")

    @pytest.mark.parametrize("model", ["26b-a4b", "31b", "e4b"])
    def test_auto_is_the_planned_ratio(self, resolved, kind, model):
        case = resolved[kind + model]["short"]
        scheduling = Scheduling(page_size=16, chunked_prefill_size=4096)
        planned = best_ratio(spec(model), Workload.fixed(1000, 1000, 32), scheduling=scheduling).ratio
        assert case["swa_full_tokens_ratio"] == pytest.approx(planned, abs=5e-4)  # rounded to a thousandth
        assert case["why"] == "planned for 32 requests of 1000/1000 tokens"
        longer = resolved[kind + model]["auto"]
        assert longer["swa_full_tokens_ratio"] < case["swa_full_tokens_ratio"]
        assert longer["why"] == "planned for 80 requests of 8000/1000 tokens"

    def test_towers_go_where_there_are_any_and_nobody_asks_for_them(self, resolved, kind):
        for model in ("26b-a4b", "31b", "e4b"):
            cases = resolved[kind + model]
            assert cases["unset"]["language_model_only"] is bool(kind)
            assert cases["images"]["language_model_only"] is False
            # SGLang keeps memory free for images only where it serves some.
            assert (cases["unset"]["mem_fraction_static"] > cases["images"]["mem_fraction_static"]) is bool(kind)


@pytest.mark.server
def test_sglangs_own_flag_works_for_gemma4(resolved):
    assert resolved["mm-31b"]["their flag"]["language_model_only"] is True
    assert "cannot be combined with --mm-enable-dp-encoder" in resolved["mm-31b"]["their flag twice"]["error"]


def image_answers(server):
    """Status and text of a request with an image, to SGLang's own endpoint and to the OpenAI-compatible one."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": url}}]
    bodies = {
        "/generate": {"text": "<|image|> what", "image_data": url, "sampling_params": {"max_new_tokens": 2}},
        "/v1/chat/completions": {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": parts}]},
    }
    answers = [requests.post(server.url + path, json=body, timeout=120) for path, body in bodies.items()]
    return [(answer.status_code, answer.text) for answer in answers]


def served(model: Path, patches: str, folder: Path, args=()):
    prompts = random_prompts((8, 100), 1000, seed=7)  # of the text's vocabulary; the second leaves the window of 64
    with sglang_server(model, patches=patches, args=args, log_dir=folder) as server:
        memory = server.info()["internal_states"][0]["memory_usage"]
        seen = {
            "tokens": [server.generate(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts],
            "ratio": memory["token_capacity_swa"] / memory["token_capacity"],
            "page": 1 / memory["token_capacity"],
            "images": image_answers(server) if "multimodal" in str(model) else None,
            "counters": server.counters(),
            "parts": counting.notes(server.launch.env["G4LAB_COUNTERS_DIR"], "text_only"),
            "log": server.log_path.read_text(),
        }
    return prompts, seen


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    return write_multimodal(spec("tiny-moe"), tmp_path_factory.mktemp("multimodal") / "tiny-moe")


@pytest.fixture(scope="module")
def without_towers(multimodal, tmp_path_factory):
    """Case 5: a MoE model's multimodal checkpoint served with both patches."""
    return served(multimodal, "text_only,swa_ratio", tmp_path_factory.mktemp("without"))


class TestServed:
    pytestmark = on_cpu_server

    def test_5_moe_pools_have_the_ratio(self, without_towers):
        _, seen = without_towers
        assert 0.15 - seen["page"] < seen["ratio"] <= 0.15
        assert seen["counters"]["swa_ratio"] == 1

    def test_6_dense_pools_keep_sglangs(self, tmp_path):
        _, seen = served(ensure("tiny-dense"), "swa_ratio,text_only", tmp_path)
        assert 0.8 - seen["page"] < seen["ratio"] <= 0.8
        assert "SGLang's default for a dense model" in seen["log"]
        assert not seen["parts"], "a text-only checkpoint has no towers to leave out"

    def test_text_is_transformers_with_and_without_towers(self, multimodal, without_towers, tmp_path):
        prompts, seen = without_towers
        with_towers = served(multimodal, "text_only", tmp_path, ["--enable-multimodal"])[1]
        truth = transformers_run("tiny-moe", prompts, NEW_TOKENS).tokens
        assert seen["tokens"] == with_towers["tokens"] == truth
        assert seen["counters"]["text_only"] >= len(prompts) * NEW_TOKENS  # prefills and decode steps
        assert "text_only" not in with_towers["counters"]

        (left,), (whole,) = seen["parts"], with_towers["parts"]
        assert set(left) == {"language_model"}
        assert left["language_model"] == whole["language_model"]
        vision, audio = (
            whole[f"{kind}_tower"]["bytes"] + whole[f"embed_{kind}"]["bytes"] for kind in tower_bytes("31b")
        )
        learned = tower_bytes("tiny-moe", dtype_bytes=4)
        assert vision >= learned["vision"]
        assert audio >= learned["audio"]

        assert [status for status, _ in with_towers["images"]] == [200, 200]
        refusals = seen["images"]
        assert [status for status, _ in refusals] == [400, 400]
        assert "Multimodal inputs are not supported" in refusals[0][1]
        assert "only supports text input" in refusals[1][1]
        assert "for post-sizing multimodal allocations" in with_towers["log"]  # memory that the KV pools do not get
        assert "for post-sizing multimodal allocations" not in seen["log"]
