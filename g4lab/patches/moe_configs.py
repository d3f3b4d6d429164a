"""Opt-in patch `moe_configs`: SGLang's own expert kernel with tuned config files, where there are some for this GPU.

Files are looked for in the folder that $G4LAB_MOE_CONFIGS names, for instance the tuner's output, else among those that
g4lab ships (none so far: files are shipped for GPUs that they were measured on). Those for the running Triton version
count, and only in pairs, gate_up and down. Every other lookup, of other sizes or dtypes, stays SGLang's, which would
lose its own files if SGLANG_MOE_CONFIG_DIR itself were pointed here. Where that variable is set, the user's files are
in use and this patch stays out. All files are read at the start, and one that SGLang would misread is refused then.

SGLang caches what it finds for the life of the process: new files need a new server.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from g4lab import env
from g4lab.errors import G4LabError
from g4lab.patches.counting import count, tally
from g4lab.patches.registry import Device, Hook, Patch

SGLANGS_VARIABLE, VARIABLE = "SGLANG_MOE_CONFIG_DIR", "G4LAB_MOE_CONFIGS"
SHIPPED = Path(__file__).resolve().parent.parent / "tuning" / "moe_files"
_LOOKUP = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config.get_moe_configs"


def root() -> Path:
    """The folder of config files, laid out as SGLang wants it."""
    return Path(os.environ.get(VARIABLE) or SHIPPED)


def _look_up(original, E, N, dtype, block_n=0, block_k=0, per_channel_quant=False, down_moe=False):
    """Stands around SGLang's get_moe_configs."""
    arguments = E, N, dtype, block_n, block_k, per_channel_quant
    names = _pair(*arguments)
    if names is None:
        return original(*arguments, down_moe)
    os.environ[SGLANGS_VARIABLE] = str(root())
    try:
        found = original(*arguments, down_moe)
    finally:
        del os.environ[SGLANGS_VARIABLE]
    if found is not None:  # deterministic mode takes no file
        count("moe_configs")
        tally("moe_configs", "files", names[down_moe])
    return found


@functools.cache
def _pair(E, N, dtype, block_n, block_k, per_channel_quant) -> tuple[str, str] | None:
    """The names of the gate_up and the down file, where both are there."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as sglangs

    from g4lab.tuning.moe_configs import folder

    block = [block_n, block_k]
    names = tuple(sglangs.get_config_file_name(E, N, dtype, block, per_channel_quant, down) for down in (False, True))
    return names if all((folder(root()) / name).is_file() for name in names) else None


def _declines(device: Device) -> str | None:
    if device == "cpu":
        return "SGLang's expert kernel, which the files are for, runs on a GPU"
    if theirs := os.environ.get(SGLANGS_VARIABLE):
        return f"{SGLANGS_VARIABLE} is set: the files of {theirs} are in use"
    return no_files(env.machine()["gpus"][0]["name"])


def no_files(gpu: str) -> str | None:
    """Why the folder of files has nothing to offer on `gpu` ("NVIDIA H200") in this process, or None."""
    from g4lab.tuning import moe_configs

    home = moe_configs.folder(root())
    mine = [path.name for path in home.glob(f"E=*,device_name={gpu.replace(' ', '_')}*.json")]
    if not any(name.replace("_down.json", ".json") in mine for name in mine if name.endswith("_down.json")):
        whose = f"{VARIABLE} ({root()})" if os.environ.get(VARIABLE) else "g4lab"
        return f"{whose} has no files for {gpu} and Triton {env.versions()['triton']}"
    try:
        moe_configs.check_root(root())
    except G4LabError as error:
        return str(error)
    return None


PATCH = Patch(
    name="moe_configs",
    effect="gives SGLang's expert kernel the config files in G4LAB_MOE_CONFIGS, where they have one for the layer",
    source="SGLang PR #26588",
    hooks=(Hook(_LOOKUP, "around", _look_up),),
    requires="config files for this GPU and Triton version, SGLANG_MOE_CONFIG_DIR unset, MoE runner triton",
    counts="lookups that such a file answered, two for each MoE layer and eager forward pass; none with fused_moe",
    opt_in=True,
    declines=_declines,
)
