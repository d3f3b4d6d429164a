"""Config files: what we write is what the installed SGLang's own lookup finds; what it would misread is refused.

The lookup is SGLang's, imported and called, with its configuration published. Only the GPU's name is made up: no GPU.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput, Unavailable
from g4lab.kernels.moe_tiles import MoEConfig, MoETile
from g4lab.tuning import moe_configs
from g4lab.tuning.moe_configs import check_pair, check_root, entry, file_name, load, nearest, parse, read, write

H200 = "NVIDIA H200"
SMALL = MoEConfig(MoETile(16, 64, 64, 1, 4, 5), MoETile(16, 128, 64, 1, 4, 4))
LARGE = MoEConfig(MoETile(64, 128, 64, 8, 4, 3), MoETile(64, 128, 32, 16, 8, 3))
CONFIGS = {1: SMALL, 16: SMALL, 512: LARGE, 4096: LARGE}
GOOD = entry(SMALL.gate_up)


@pytest.fixture
def sglang(monkeypatch, tmp_path):
    """SGLang's module of config lookups, looking in tmp_path, on a GPU that calls itself an H200."""
    runtime = pytest.importorskip("sglang.srt.runtime_context")
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as module

    monkeypatch.setenv(moe_configs.VARIABLE, str(tmp_path))
    monkeypatch.setattr(module, "get_device_name", lambda: H200)
    module.get_moe_configs.cache_clear()
    with runtime.get_context().override_server_args(model_path="none", device="cpu"):
        yield module
    module.get_moe_configs.cache_clear()


def optimal(sglang, tokens, width=704):
    shapes = (128, 2 * width, 2816), (128, 2816, width)
    config, (down, _) = sglang.try_get_optimal_moe_config(*shapes, 8, None, tokens, return_down_config=True)
    return config, down


@pytest.mark.parametrize("dtype", [None, "float32", "fp8_w8a8"])
@pytest.mark.parametrize("down", [False, True])
def test_names_are_those_that_sglang_builds(sglang, dtype, down):
    assert file_name(128, 704, H200, dtype=dtype, down=down) == sglang.get_config_file_name(
        128, 704, dtype, [0, 0], down_moe=down
    )


def test_sglang_finds_and_uses_what_we_write(sglang, tmp_path):
    paths = write(tmp_path, 128, 704, H200, CONFIGS)
    for down, path in enumerate(paths):
        found = sglang.get_moe_configs(128, 704, None, 0, 0, down_moe=bool(down))
        assert found == read(path)
        assert list(found) == list(CONFIGS)
    ours = load(tmp_path, 128, 704, H200)
    assert ours == CONFIGS
    for tokens in (1, 8, 9, 17, 264, 265, 2304, 2305, 100_000):
        config, down = optimal(sglang, tokens)
        key = nearest(CONFIGS, tokens)
        assert config == entry(CONFIGS[key].gate_up)
        assert down == entry(CONFIGS[key].down)


def test_sglang_falls_back_to_another_triton_and_to_its_default(sglang, tmp_path):
    write(tmp_path, 128, 704, H200, CONFIGS, triton="3.5.1")
    write(tmp_path, 128, 704, H200, {1: LARGE}, triton="3.6.0")
    assert optimal(sglang, 1) == (entry(LARGE.gate_up), entry(LARGE.down))
    config, down = optimal(sglang, 1, width=352)
    assert "num_warps" not in config
    assert down is None


def test_sglang_replaces_the_block_that_we_refuse(sglang, tmp_path):
    """The reason for check_pair: SGLang's own lookup changes the tile."""
    paths = write(tmp_path, 128, 704, H200, CONFIGS)
    down = {16: entry(SMALL.down), 4096: entry(LARGE.down)}
    paths[1].write_text(json.dumps(down))
    config, found = optimal(sglang, 600)
    assert config == entry(LARGE.gate_up)
    assert found == entry(SMALL.down) | {"BLOCK_SIZE_M": 64}
    for check in (lambda: load(tmp_path, 128, 704, H200), lambda: check_root(tmp_path)):
        with pytest.raises(BadInput, match="BLOCK_SIZE_M"):
            check()


def test_upstreams_own_files_pass(sglang):
    """Those for E=128, N=704 that SGLang ships: H200's down file is its gate_up file."""
    configs = Path(sglang.__file__).with_name("configs")
    files = sorted(configs.glob("*/E=128,N=704,device_name=NVIDIA*.json"))
    assert len(files) >= 4
    assert all(read(path) for path in files)
    gate_up, down = (read(configs / "triton_3_6_0" / file_name(128, 704, H200, down=d)) for d in (False, True))
    assert gate_up == down
    assert max(gate_up) == 1024


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSON"),
        ("[]", "empty"),
        ("{}", "empty"),
        (json.dumps({"one": GOOD}), "plain digits"),
        (json.dumps({" 1": GOOD}), "plain digits"),
        (json.dumps({"0": GOOD}), "plain digits"),
        (f'{{"1": {json.dumps(GOOD)}, "1": {json.dumps(GOOD)}}}', "twice"),
        (json.dumps({"1": [16, 64]}), "object of launch options"),
        (json.dumps({"1": {k: v for k, v in GOOD.items() if k != "num_warps"}}), "num_warps as well"),
        (json.dumps({"1": GOOD | {"waves_per_eu": 2}}), "waves_per_eu"),
        (json.dumps({"1": GOOD | {"BLOCK_SIZE_N": "64"}}), "an integer of 16"),
        (json.dumps({"1": GOOD | {"BLOCK_SIZE_N": 64.0}}), "an integer of 16"),
        (json.dumps({"1": GOOD | {"BLOCK_SIZE_K": 8}}), "an integer of 16"),
        (json.dumps({"1": GOOD | {"BLOCK_SIZE_M": 48}}), "power of two"),
        (json.dumps({"1": GOOD | {"num_warps": 6}}), "power of two"),
        (json.dumps({"1": GOOD | {"num_warps": 64}}), "32 at most"),
        (json.dumps({"1": GOOD | {"num_stages": 0}}), "an integer of 1"),
        (json.dumps({"1": GOOD | {"num_stages": True}}), "an integer of 1"),
        (json.dumps({"1": GOOD | {"USE_TMA": 1}}), "true or false"),
    ],
)
def test_refused_with_the_reason(text, why):
    with pytest.raises(BadInput, match=re.escape(why)):
        parse(text, "file.json")


def test_tma_is_read():
    assert parse(json.dumps({"1": GOOD | {"USE_TMA": True}}), "f")[1]["USE_TMA"] is True


def test_nothing_is_written_that_is_refused(tmp_path):
    crooked = {1: SMALL, 2: MoEConfig(SMALL.gate_up, LARGE.down)}
    odd = {1: replace(SMALL, gate_up=replace(SMALL.gate_up, block_n=48))}
    for configs in (crooked, odd, {}, {0: SMALL}):
        with pytest.raises(BadInput):
            write(tmp_path, 128, 704, H200, configs)
    assert not list(tmp_path.rglob("*.json"))


@given(
    up=st.dictionaries(st.integers(1, 60), st.sampled_from([16, 32]), min_size=1, max_size=4),
    down=st.dictionaries(st.integers(1, 60), st.sampled_from([16, 32]), min_size=1, max_size=4),
)
def test_a_pair_is_refused_exactly_where_some_size_differs(up, down):
    up, down = ({key: {"BLOCK_SIZE_M": m} for key, m in each.items()} for each in (up, down))
    differs = any(up[nearest(up, t)] != down[nearest(down, t)] for t in range(1, 130))
    try:
        check_pair(up, down, "down.json")
    except BadInput:
        assert differs
    else:
        assert not differs


def test_folders_that_sglang_would_fail_on(sglang, tmp_path):
    with pytest.raises(FileNotFoundError):
        sglang.get_moe_configs(128, 704, None, 0, 0)
    with pytest.raises(BadInput, match="configs"):
        check_root(tmp_path)
    paths = write(tmp_path, 128, 704, H200, CONFIGS)
    assert check_root(tmp_path) == sorted(paths)
    (tmp_path / "configs" / "triton_new").mkdir()
    with pytest.raises(ValueError, match="invalid literal"):
        sglang.get_moe_configs(64, 704, None, 0, 0)
    with pytest.raises(BadInput, match="triton_X_Y_Z"):
        check_root(tmp_path)
    (tmp_path / "configs" / "triton_new").rmdir()
    paths[0].unlink()
    with pytest.raises(BadInput, match="beside it"):
        check_root(tmp_path)
    with pytest.raises(Unavailable):
        load(tmp_path, 128, 704, H200)
