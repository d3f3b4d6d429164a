"""A profile of the real server, captured here: the phases asked for, every step, and a family for nearly all time."""

import json

import pytest

from g4lab import env
from g4lab.errors import BadInput
from g4lab.runners import profile_server, sglang_server
from g4lab.trace import coverage, kernel_table, load

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


def test_decode_and_prefill_of_one_server(tmp_path):
    backend = "triton" if env.has_gpu() else "torch_native"
    with sglang_server("tiny-moe", "none", attention_backend=backend, log_dir=tmp_path / "log") as server:
        with pytest.raises(BadInput, match="steps"):
            profile_server(server, "decode", steps=0, out=tmp_path / "none")
        folder = profile_server(server, "decode", 2, 16, 3, out=tmp_path)
        decode = load(folder)
        assert load(profile_server(server, "decode", 2, 16, 3, out=tmp_path)).steps.shape == decode.steps.shape
        prefill = load(profile_server(server, "prefill", 1, 32, 2, out=tmp_path))
    assert decode.problems == prefill.problems == []
    assert decode.steps.query("phase == 'decode'")["batch"].tolist() == [2] * 3
    assert prefill.steps.query("phase == 'prefill'")["tokens"].tolist() == [32] * 2
    for trace, phase in ((decode, "decode"), (prefill, "prefill")):
        assert coverage(trace)["coverage"].min() >= 0.95
        assert {"dense GEMM", "routing"} <= set(kernel_table(trace, phase=phase).index)
    said = json.loads((folder / "provenance.json").read_text())
    assert said["parameters"]["batch"] == 2
    assert said["parameters"]["attention_backend"]
    assert not list(tmp_path.rglob(".capture-*"))
    assert folder.name == "tiny-moe-decode-bs2-len16-none"
