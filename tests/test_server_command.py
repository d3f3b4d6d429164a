"""What sglang_server would start, and what it refuses before starting anything."""

import json
import socket

import pytest

from g4lab import env
from g4lab.errors import BadInput, Unavailable
from g4lab.gemma4.checkpoint import ensure
from g4lab.runners.server_command import STANDIN, server_command

pytestmark = pytest.mark.skipif(env.has_gpu(), reason="these are the defaults of a machine without a GPU")


def launch(tmp_path, model="tiny-moe", **arguments):
    return server_command(model, folder=tmp_path, **arguments)


def flags(command):
    return {a: b for a, b in zip(command, [*command[1:], ""], strict=True) if a.startswith("--")}


def test_cpu_defaults(tmp_path):
    made = launch(tmp_path)
    given = flags(made.command)
    assert made.device == "cpu"
    assert given["--model-path"] == str(made.checkpoint) == str(ensure("tiny-moe", "float32"))
    assert given["--dtype"] == "float32"
    assert given["--attention-backend"] == "intel_amx"  # SGLang's name; falls back to torch_native
    assert int(given["--port"]) == made.port
    assert json.loads(given["--json-model-override-args"])["swa_head_dim"] > 0
    assert "--speculative-algorithm" not in given


def test_standin_is_on_the_path_of_a_cpu_server_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    on_cpu = launch(tmp_path).env
    assert on_cpu["PYTHONPATH"] == f"{STANDIN}:/elsewhere"
    assert (STANDIN / "sgl_kernel" / "__init__.py").is_file()
    assert on_cpu["SGLANG_USE_CPU_ENGINE"] == on_cpu["TRITON_INTERPRET"] == on_cpu["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(env, "has_gpu", lambda: True)
    on_gpu = launch(tmp_path)
    assert on_gpu.device == "cuda"
    assert not {"PYTHONPATH", "SGLANG_USE_CPU_ENGINE", "TRITON_INTERPRET"} & set(on_gpu.env)
    assert not {"--device", "--attention-backend", "--disable-cuda-graph"} & set(on_gpu.command)
    assert on_gpu.checkpoint == ensure("tiny-moe", "bfloat16")


def test_patches_reach_the_server_as_written_and_own_variables_win(tmp_path):
    made = launch(tmp_path, patches="all,-router", env_vars={"G4LAB_ROUTER_ROUNDING": "fp32", "HF_HUB_OFFLINE": "0"})
    assert made.env["G4LAB_PATCHES"] == "all,-router"
    assert made.env["SGLANG_PLUGINS"] == "g4lab"
    assert made.env["G4LAB_ROUTER_ROUNDING"] == "fp32"
    assert made.env["HF_HUB_OFFLINE"] == "0"
    assert {"router_scale", "swa_decode_window", "mtp_pp_proxy", "router_norm"} <= set(made.patches)
    assert not {"router", "expert_load"} & set(made.patches)


def test_more_flags_come_last_so_that_they_win(tmp_path):
    made = launch(tmp_path, args=["--max-total-tokens", "4096"])
    assert made.command[-2:] == ("--max-total-tokens", "4096")


def test_a_draft_brings_mtp_and_the_triton_backend(tmp_path):
    given = flags(launch(tmp_path, draft=ensure("tiny-moe")).command)
    assert given["--speculative-algorithm"] == "NEXTN"
    assert given["--speculative-draft-model-path"] == str(ensure("tiny-moe"))
    assert given["--attention-backend"] == "triton"


def test_a_large_model_without_weights(tmp_path):
    made = launch(tmp_path, "26b-a4b", args=["--load-format", "dummy"], dtype="bfloat16")
    assert made.checkpoint == tmp_path / "model"
    assert (made.checkpoint / "tokenizer.json").is_file()
    assert not list(made.checkpoint.glob("*.safetensors"))


def test_a_model_in_the_hugging_face_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--google--gemma" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for file in ensure("tiny-moe").iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert launch(tmp_path, "google/gemma").checkpoint == snapshot


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "tiny-mo"}, "model: got 'tiny-mo', expected one of 26b-a4b, 31b, e4b, e2b, tiny-moe"),
        ({"model": "/no/such/folder"}, "model: got '/no/such/folder', expected one of .* a checkpoint folder"),
        ({"model": "26b-a4b"}, "model: got '26b-a4b', expected a folder with its weights"),
        ({"draft": "/no/such/draft"}, "draft: got '/no/such/draft', expected a checkpoint folder"),
        ({"patches": "routr"}, "patches: got 'routr'"),
        ({"device": "tpu"}, "device: got 'tpu', expected cpu or cuda"),
        ({"attention_backend": "fa3"}, "attention_backend: got 'fa3', expected torch_native or triton on a CPU"),
        ({"attention_backend": "triton", "dtype": "bfloat16"}, "dtype: got 'bfloat16', expected float32 .* wrong"),
        ({"args": ["--port", "30000"]}, "args: got '--port'"),
        ({"args": ["--dtype=bfloat16"]}, "args: got '--dtype=bfloat16'"),
        ({"port": 70000}, "port: got 70000, expected 1 to 65535"),
        ({"dtype": "auto"}, "dtype: got 'auto', expected one of float32"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(tmp_path, arguments, message):
    with pytest.raises(BadInput, match=message) as error:
        launch(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port: got {port}, expected a free port .Address already in use"):
            launch(tmp_path, port=port)
    assert launch(tmp_path, port=port).port == port


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        launch(tmp_path / "logs", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"\*\.safetensors weights"):
        launch(tmp_path / "logs", tmp_path)


def test_torch_native_cannot_verify_drafts(tmp_path):
    with pytest.raises(BadInput, match="attention_backend: got 'torch_native', expected triton with a draft"):
        launch(tmp_path, draft=ensure("tiny-moe"), attention_backend="torch_native")


def test_no_gpu(tmp_path):
    with pytest.raises(Unavailable, match="no CUDA GPU"):
        launch(tmp_path, device="cuda")
