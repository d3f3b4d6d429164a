"""Checkpoints on disk: same seed same bytes, loadable, not degenerate, never over someone else's files."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from g4lab.errors import BadInput, Unavailable
from g4lab.gemma4 import checkpoint, spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.specs import TWINS
from g4lab.gemma4.tensors import tensors
from g4lab.gemma4.tokenizer import SPECIAL_TOKENS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices: threads that wait for one another cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=TWINS)
def twin(request, tmp_path_factory):
    """(spec, folder of its fp32 checkpoint)."""
    s = spec(request.param)
    return s, s.write_checkpoint(tmp_path_factory.mktemp("twin") / s.name, dtype=torch.float32)


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    """Folder of tiny-moe in fp32."""
    return spec("tiny-moe").write_checkpoint(tmp_path_factory.mktemp("moe") / "target", dtype="float32")


def test_same_seed_same_bytes_in_another_process(moe, tmp_path):
    code = "import sys; from g4lab.gemma4 import spec; spec('tiny-moe').write_checkpoint(sys.argv[1], dtype='float32')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, capture_output=True)
    names = sorted(file.name for file in moe.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(names)
    assert [_sha(moe / name) for name in names] == [_sha(tmp_path / "again" / name) for name in names]
    other = spec("tiny-moe").write_checkpoint(tmp_path / "other", seed=1, dtype="float32")
    assert _sha(other / "model.safetensors") != _sha(moe / "model.safetensors")


def test_bf16_is_the_rounded_fp32(moe, tmp_path):
    low = load_file(spec("tiny-moe").write_checkpoint(tmp_path / "bf16") / "model.safetensors")
    for name, value in load_file(moe / "model.safetensors").items():
        assert low[name].dtype == torch.bfloat16
        assert torch.equal(low[name], value.to(torch.bfloat16)), name


def test_transformers_loads_every_tensor_as_written(twin):
    s, folder = twin
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == torch.float32
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[trouble], (trouble, info[trouble])
    written, loaded = load_file(folder / "model.safetensors"), model.state_dict()
    assert set(written) == {t.name for t in tensors(s)}
    assert all(torch.equal(loaded[name], value) for name, value in written.items())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_no_scale_is_one(twin):
    _, folder = twin
    for name, value in load_file(folder / "model.safetensors").items():
        if value.dim() == 1:
            assert (value - 1).abs().max() > 1e-3, name


@pytest.mark.parametrize("length", [8, 40, 150])
def test_greedy_decoding_varies_and_does_not_end(twin, length):
    _, folder = twin
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    new = _greedy(model, _prompt(length), 16)
    assert len(new) == 16
    assert len(set(new)) >= 8
    assert min(new) >= len(SPECIAL_TOKENS)


def test_greedy_tokens_change_when_a_scale_or_a_key_is_dropped(moe):
    model = AutoModelForCausalLM.from_pretrained(moe).eval()
    prompt = _prompt(150)
    right = _greedy(model, prompt, 16)
    for attribute in ("scale", "per_expert_scale"):
        saved = [getattr(layer.router, attribute).data.clone() for layer in model.model.layers]
        for layer in model.model.layers:
            getattr(layer.router, attribute).data.fill_(1.0)
        assert _greedy(model, prompt, 16) != right, attribute
        for layer, value in zip(model.model.layers, saved, strict=True):
            getattr(layer.router, attribute).data.copy_(value)
    assert _greedy(model, prompt, 16) == right
    model.config.sliding_window -= 1
    assert _greedy(model, prompt, 16) != right


def test_tokenizer_fills_the_vocabulary_and_round_trips(twin):
    s, folder = twin
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == s.vocab_size
    assert tokenizer.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    text = "The router reads 8 of 128 experts.\n\tnaïve 世界"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) < s.vocab_size
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"


def test_overrides_for_sglang_name_the_full_layers_plainly(twin):
    s, folder = twin
    full, sliding = s.layers[-1], s.layers[0]
    assert checkpoint.sglang_overrides(folder) == {
        "head_dim": full.head_dim,
        "v_head_dim": full.head_dim,
        "num_key_value_heads": full.num_kv_heads,
        "swa_head_dim": sliding.head_dim,
        "swa_v_head_dim": sliding.head_dim,
        "swa_num_key_value_heads": sliding.num_kv_heads,
    }
    assert checkpoint.sglang_overrides({"model_type": "gemma4"}) == {}
    with pytest.raises(BadInput, match=r"checkpoint: got .*expected a folder with config\.json"):
        checkpoint.sglang_overrides(folder / "nothing")


def test_refuses_files_it_did_not_write_and_replaces_its_own(tmp_path):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("keep me")
    with pytest.raises(BadInput, match=r"path: got .*mine.*expected a new or empty folder"):
        spec("tiny-dense").write_checkpoint(foreign)
    assert [f.name for f in foreign.iterdir()] == ["notes.txt"]
    with pytest.raises(BadInput, match="expected a folder, not a file"):
        spec("tiny-dense").write_checkpoint(foreign / "notes.txt")
    (tmp_path / "empty").mkdir()
    path = spec("tiny-dense").write_checkpoint(tmp_path / "empty", weights=False)
    assert not (path / "model.safetensors").exists()
    assert spec("tiny-dense").write_checkpoint(path) == path
    assert json.loads((path / "g4lab.json").read_text())["spec"] == "tiny-dense"
    assert (path / "model.safetensors").exists()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["empty", "mine"]


def test_a_failure_leaves_nothing_behind_and_the_old_one_whole(tmp_path, monkeypatch):
    path = spec("tiny-dense").write_checkpoint(tmp_path / "ck")
    before = {f.name: _sha(f) for f in path.iterdir()}

    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "random_weight", fails)
    for target in (path, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            spec("tiny-dense").write_checkpoint(target, seed=1)
    assert {f.name: _sha(f) for f in path.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["ck"]


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 500_000)
    path = spec("tiny-ple").write_checkpoint(tmp_path / "sharded", dtype="float32")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 5
    monkeypatch.undo()
    one_file = load_file(spec("tiny-ple").write_checkpoint(tmp_path / "one", dtype="float32") / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in one_file.items())


def test_a_checkpoint_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(Unavailable, match=r"take 61\.4 GB, 1\.0 GB are free"):
        spec("31b").write_checkpoint(tmp_path / "31b")
    assert not (tmp_path / "31b").exists()


def test_unknown_dtype_and_name():
    with pytest.raises(BadInput, match="dtype: got 'int8', expected one of float32, bfloat16, float16"):
        spec("tiny-moe").write_checkpoint("never", dtype=torch.int8)
    with pytest.raises(BadInput, match="name: got '31b', expected a tiny twin"):
        checkpoint.ensure("31b")


def test_ensure_makes_it_once_for_concurrent_callers(tmp_path, monkeypatch):
    monkeypatch.setenv("G4LAB_CACHE", str(tmp_path))
    made = []
    real = checkpoint.write_checkpoint
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *a, **k: made.append(a) or real(*a, **k))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: checkpoint.ensure("tiny-dense", "bfloat16"), range(8)))
    assert len(paths) == len(made) == 1
    assert (paths.pop() / "model.safetensors").exists()


@pytest.mark.parametrize("accepting", [True, False])
def test_assistant_drafts_are_sometimes_right(moe, tmp_path, accepting):
    from transformers.models.gemma4_assistant import Gemma4AssistantForCausalLM

    path = write_assistant(spec("tiny-moe"), moe, tmp_path / "assistant", accepting=accepting)
    assert checkpoint.sglang_overrides(path) == {}
    assistant = Gemma4AssistantForCausalLM.from_pretrained(path).eval()
    target = AutoModelForCausalLM.from_pretrained(moe).eval()
    passes = []
    hook = target.register_forward_hook(lambda *_: passes.append(1))
    saved = 0
    for length in (8, 40, 150):
        plain = _greedy(target, _prompt(length), 32)
        passes.clear()
        assert _greedy(target, _prompt(length), 32, assistant_model=assistant) == plain
        saved += 32 - len(passes)
    hook.remove()
    # Each accepted draft saves a pass of the target; the fit gets some right and some wrong.
    assert 6 <= saved <= 80 if accepting else saved <= 5


def test_assistant_refuses_what_it_cannot_follow(moe, tmp_path):
    with pytest.raises(BadInput, match="spec: got '26b-a4b', expected a tiny twin"):
        write_assistant(spec("26b-a4b"), moe, tmp_path / "a")
    with pytest.raises(BadInput, match=r"target_dir: got .*expected a folder with model\.safetensors"):
        write_assistant(spec("tiny-moe"), tmp_path / "nothing", tmp_path / "a")


def _prompt(length):
    generator = torch.Generator().manual_seed(length)
    return torch.randint(len(SPECIAL_TOKENS), 1024, (1, length), generator=generator)


def _greedy(model, prompt, count, **more):
    """New tokens of greedy decoding; an end token would cut them short."""
    with torch.no_grad():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, **more
        )
    return out[0, prompt.shape[1] :].tolist()


def _sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
