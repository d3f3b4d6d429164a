"""Models for transformers in this process: a checkpoint's, a twin's, or a large one's shape with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from g4lab.errors import Unavailable, bad
from g4lab.gemma4 import NAMES, checkpoint, spec
from g4lab.gemma4.specs import TWINS, Spec
from g4lab.gemma4.tensors import tensors
from g4lab.runners.server_command import choose_device

if TYPE_CHECKING:
    import torch


def load_model(model: str | Path, device: str | None = None, dtype: str | None = None) -> torch.nn.Module:
    """The transformers model that `model` names, in eval mode on `device`.

    Args:
        model: a tiny twin's name, a checkpoint folder, or a large model's name ("26b-a4b"), which then has random
            weights that spread the routing (g4lab.patches.dummy_weights), made on the device without any file.
        device: default the GPU where there is one. dtype: default float32 on a CPU, else the checkpoint's.

    Raises:
        BadInput: no such model, device or dtype.
        Unavailable: no GPU, or a large model does not fit the device's free memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = str(model)
    device = choose_device(device)
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    if model not in NAMES and not (Path(model) / "config.json").is_file():
        raise bad("model", model, f"a checkpoint folder with config.json, or one of {', '.join(NAMES)}")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise bad("dtype", dtype, "the name of a torch dtype, such as float32")
    if model in NAMES:
        chosen = "bfloat16" if dtype == "auto" else dtype
        if model not in TWINS:
            return random_model(spec(model), device, getattr(torch, chosen))
        model = str(checkpoint.ensure(model, chosen))
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)


def random_model(spec: Spec, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A model of `spec` with random weights, made on `device`; its routing is spread, yet no trained model's.

    Raises:
        Unavailable: it does not fit the device's free memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from g4lab.patches.dummy_weights import spread

    need = sum(t.size for t in tensors(spec)) * dtype.itemsize
    free = _free_bytes(torch.device(device))
    if need > free:
        raise Unavailable(
            f"{spec.name}: the weights take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}"
        )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(spec.hf_config(), dtype=dtype).eval()
    spread(model)
    return model


def _free_bytes(device: torch.device) -> int:
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
