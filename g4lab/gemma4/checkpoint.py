"""Random checkpoints on disk that transformers and SGLang load: weights, configuration, tokenizer, chat template."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.gemma4.folder import MARKER, checkpoint_folder
from g4lab.gemma4.specs import TWINS, Spec, spec
from g4lab.gemma4.tensors import Tensor, tensors
from g4lab.gemma4.weights import random_weight

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_SHARD_BYTES = 4 * 2**30


def write_checkpoint(
    spec: Spec, path: Path | str, seed: int = 0, dtype: torch.dtype | str = "bfloat16", weights: bool = True
) -> Path:
    """Write a random checkpoint of `spec` to the folder `path` and return it; the same seed gives the same bytes.

    The bf16 and fp16 weights are the rounded fp32 ones. The tokenizer knows up to `vocab_size` tokens (about 15,000 for
    the large models, whose ids beyond that decode to nothing).

    Args:
        dtype: torch.float32, torch.bfloat16 or torch.float16, or its name.
        weights: False leaves the weights out, for an engine's dummy loading of the large models.

    Raises:
        BadInput: another dtype, or a `path` that holds files g4lab did not write.
        Unavailable: not enough disk space.
    """
    dtype = _dtype_name(dtype)
    _need_space(Path(path), sum(t.size for t in tensors(spec)) * DTYPE_BYTES[dtype] if weights else 0)
    made_of = {"spec": spec.name, "seed": seed, "dtype": dtype, "weights": weights}
    with checkpoint_folder(path, made_of) as folder:
        config = spec.hf_config()
        config.dtype = dtype
        config.save_pretrained(folder)
        save_tokenizer(spec, folder)
        if weights:
            _save_weights(spec, folder, seed, dtype)
    return Path(path)


def ensure(name: str, dtype: torch.dtype | str = "float32", seed: int = 0) -> Path:
    """The cached checkpoint of a tiny twin, made at the first call; concurrent callers wait for one maker.

    Raises:
        BadInput: `name` is no twin ("tiny-moe", "tiny-dense", "tiny-ple"), or another dtype.
    """
    import filelock

    if name not in TWINS:
        raise bad("name", name, "a tiny twin: " + ", ".join(TWINS))
    dtype = _dtype_name(dtype)
    home = env.cache_dir() / "checkpoints"
    home.mkdir(exist_ok=True)
    path = home / f"{name}-{dtype}-seed{seed}-{_recipe()}"
    with filelock.FileLock(f"{path}.lock"):
        if not (path / MARKER).exists():
            write_checkpoint(spec(name), path, seed=seed, dtype=dtype)
    return path


def sglang_overrides(checkpoint: Path | str | Mapping) -> dict:
    """What SGLang's `--json-model-override-args` must say for this checkpoint (a folder, or its config as a mapping).

    SGLang names the full layers' dimensions plainly and the sliding layers' `swa_*`, the reverse of Hugging Face. It
    translates model_type gemma4 and gemma4_assistant by itself, but not the text-only gemma4_text (SGLang 0.5.21,
    `srt/utils/hf_transformers/config.py`). Empty for those that need nothing, or that say it already.

    Raises:
        BadInput: a folder without config.json.
    """
    config = checkpoint if isinstance(checkpoint, Mapping) else _read_config(Path(checkpoint))
    if config.get("model_type") != "gemma4_text" or "swa_head_dim" in config:
        return {}
    sliding, full = config["head_dim"], config["global_head_dim"]
    kv_heads = config["num_key_value_heads"]
    return {
        "head_dim": full,
        "v_head_dim": full,
        "num_key_value_heads": config.get("num_global_key_value_heads") or kv_heads,
        "swa_head_dim": sliding,
        "swa_v_head_dim": sliding,
        "swa_num_key_value_heads": kv_heads,
    }


def save_tokenizer(spec: Spec, folder: Path) -> None:
    """Write the tokenizer and chat template of `spec` into `folder`."""
    from g4lab.gemma4.tokenizer import make_tokenizer

    make_tokenizer(spec.vocab_size).save_pretrained(folder)


def _save_weights(spec: Spec, folder: Path, seed: int, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    shards = _shards(tensors(spec), DTYPE_BYTES[dtype])
    index = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        values = {t.name: random_weight(t.name, t.shape, seed).to(getattr(torch, dtype)) for t in shard}
        save_file(values, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(values, name)
    if len(shards) > 1:
        total = sum(t.size for t in tensors(spec)) * DTYPE_BYTES[dtype]
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def _shards(all_tensors: list[Tensor], dtype_bytes: int) -> list[list[Tensor]]:
    """Consecutive tensors in groups of at most MAX_SHARD_BYTES (a larger tensor stands alone)."""
    shards, room = [], 0
    for tensor in all_tensors:
        size = tensor.size * dtype_bytes
        if not shards or size > room:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    return shards


def _dtype_name(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise bad("dtype", name, "one of " + ", ".join(DTYPE_BYTES))
    return name


def _need_space(path: Path, need: int) -> None:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise Unavailable(f"{path}: the weights take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _read_config(folder: Path) -> dict:
    if not (folder / "config.json").is_file():
        raise bad("checkpoint", str(folder), "a folder with config.json")
    return json.loads((folder / "config.json").read_text())


@functools.cache
def _recipe() -> str:
    """Changes when the code that makes a checkpoint does, so that a cached one is never a stale one."""
    digest = hashlib.sha256(repr(sorted(env.versions().items())).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:10]
