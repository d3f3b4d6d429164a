"""SGLang's config files of the fused expert layer: named, written, read and refused where SGLang would misread them.

SGLang 0.5.21 (moe_runner/triton_utils/fused_moe_triton_config.py) looks in $SGLANG_MOE_CONFIG_DIR/configs, and only
there, for the folder of the running Triton version, then in those of other versions, the newest first, which it says in
its log. A file is a JSON object {number of tokens: launch options}; a number that it lacks gets the options of the
nearest it has, the first in the file of two as near. The file `..._down.json` has the down product's. Both products
share one placement of pairs, so of the down options BLOCK_SIZE_M is replaced by the gate_up product's: a tile that
nobody tuned. Without the file the down product runs with the gate_up options. The lookup is cached for the life of the
process, a miss as well: files and the variable have to be there before the first layer runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.kernels.moe_tiles import MoEConfig, MoETile

FIELDS = {
    "BLOCK_SIZE_M": "block_m",
    "BLOCK_SIZE_N": "block_n",
    "BLOCK_SIZE_K": "block_k",
    "GROUP_SIZE_M": "group_m",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
}
TMA = "USE_TMA"  # SGLang takes it out of the options before the launch; absent means no
VARIABLE = "SGLANG_MOE_CONFIG_DIR"
SHIPPED = Path(__file__).with_name("moe_files")  # those that g4lab comes with, measured ones only
DTYPES = (None, "float32", "fp8_w8a8", "int8_w8a8", "int8_w8a16", "int4_w4a16")
Entries = dict[int, dict]


def file_name(num_experts: int, width: int, device: str, *, dtype: str | None = None, down: bool = False) -> str:
    """The name that SGLang builds; width is one rank's, device as torch names the GPU ("NVIDIA H200").

    dtype: None for bf16 and fp16, else one of DTYPES. Raises BadInput for another.
    """
    if dtype not in DTYPES:
        raise bad("dtype", dtype, "one of " + ", ".join(map(str, DTYPES)))
    selector = f",dtype={dtype}" if dtype else ""
    device = device.replace(" ", "_")
    return f"E={num_experts},N={width},device_name={device}{selector}{'_down' * down}.json"


def folder(root: Path, triton: str | None = None) -> Path:
    """Where SGLang looks first with SGLANG_MOE_CONFIG_DIR=root, under this Triton version (default: the installed)."""
    triton = triton or env.versions()["triton"]
    if not triton:
        raise Unavailable("Triton is not installed, and config files are filed under its version")
    return Path(root) / "configs" / f"triton_{triton.replace('.', '_')}"


def nearest(keys, tokens: int) -> int:
    """The key whose options SGLang takes for this many tokens; keys in the order of the file."""
    return min(keys, key=lambda key: abs(key - tokens))


def entry(tile: MoETile) -> dict[str, int]:
    """A tile as SGLang's launch options."""
    return {name: getattr(tile, field) for name, field in FIELDS.items()}


def tile(options: Mapping) -> MoETile:
    """Launch options as a tile, whatever they say about TMA."""
    return MoETile(**{field: options[name] for name, field in FIELDS.items()})


def write(
    root: Path, num_experts: int, width: int, device: str, configs: Mapping[int, MoEConfig], *,
    dtype: str | None = None, triton: str | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """Writes gate_up and down options for these numbers of tokens; returns both files.

    Raises:
        BadInput: configs that SGLang could not use as they are.
    """
    found = []
    for down in (False, True):
        each = {tokens: entry(config.down if down else config.gate_up) for tokens, config in sorted(configs.items())}
        path = folder(root, triton) / file_name(num_experts, width, device, dtype=dtype, down=down)
        found.append((path, parse(json.dumps(each, indent=4), path.name)))
    check_pair(found[0][1], found[1][1], found[1][0].name)
    for path, entries in reversed(found):  # a down file alone changes nothing that gate_up would not
        env.atomic_write(path, json.dumps(entries, indent=4) + "\n")
    return found[0][0], found[1][0]


def read(path: Path) -> Entries:
    """{tokens: launch options} of one file, as SGLang reads it, in the order of the file.

    Raises:
        BadInput: what SGLang would misread or fail on, and why.
        Unavailable: the file is not there or cannot be read.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"config file {path}: {error}") from None
    return parse(text, Path(path).name)


def parse(text: str, name: str) -> Entries:
    """As `read`, of a text."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise bad(name, text[:40], f"JSON without duplicate names ({error})") from None
    if not isinstance(found, dict) or not found:
        raise bad(name, found, "an object with at least one number of tokens: SGLang takes an empty one for no file")
    for key, options in found.items():
        if not (key.isascii() and key.isdigit() and key == str(int(key)) and int(key) > 0):
            raise bad(f"{name}, key", key, "a number of tokens, 1 or more, as plain digits")
        _check_options(f"{name}, {key} tokens", options)
    return {int(key): options for key, options in found.items()}


def _unique(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} twice, of which SGLang would take the last")
    return dict(pairs)


def _check_options(where: str, options: object) -> None:
    if not isinstance(options, dict):
        raise bad(where, options, "an object of launch options")
    if missing := [name for name in FIELDS if name not in options]:
        raise bad(where, ", ".join(options), f"{missing[0]} as well")
    if unknown := [name for name in options if name not in (*FIELDS, TMA)]:
        raise bad(f"{where}, option", unknown[0], "what SGLang's kernel takes: " + ", ".join((*FIELDS, TMA)))
    for name in FIELDS:
        value, least = options[name], 16 if name.startswith("BLOCK") else 1
        if type(value) is not int or value < least:
            raise bad(f"{where}, {name}", value, f"an integer of {least} or more")
        if name not in ("GROUP_SIZE_M", "num_stages") and value & (value - 1):
            raise bad(f"{where}, {name}", value, "a power of two")
    if options["num_warps"] > 32:
        raise bad(f"{where}, num_warps", options["num_warps"], "32 at most, a block's limit")
    if type(options.get(TMA, False)) is not bool:
        raise bad(f"{where}, {TMA}", options[TMA], "true or false")


def check_pair(gate_up: Entries, down: Entries, name: str) -> None:
    """Raises BadInput where SGLang would run the down product with another BLOCK_SIZE_M than its file says."""
    # The nearest key changes halfway between keys alone.
    keys = sorted({*gate_up, *down})
    halves = {(a + b) // 2 + i for a in keys for b in keys if a < b for i in (0, 1)}
    for tokens in sorted({*keys, *halves}):
        above, below = nearest(gate_up, tokens), nearest(down, tokens)
        wanted, found = (each["BLOCK_SIZE_M"] for each in (gate_up[above], down[below]))
        if wanted != found:
            expected = f"{wanted}, as key {above} of the gate_up file, which SGLang puts in its place"
            raise bad(f"{name}, {below} tokens, BLOCK_SIZE_M at {tokens} tokens", found, expected)


def check_root(root: Path) -> list[Path]:
    """Every config file under `root`, a value for SGLANG_MOE_CONFIG_DIR, each read and each pair compared.

    Raises:
        BadInput: no configs folder (SGLang then fails at the first lookup that finds nothing), a folder that is not
            named for a Triton version (its search fails on it), a file that SGLang would misread, a down file whose
            gate_up file is missing.
    """
    configs = Path(root) / "configs"
    if not configs.is_dir():
        raise bad(VARIABLE, str(root), "a folder that has a folder configs: SGLang lists it without asking")
    for each in sorted(configs.glob("triton_*")):
        if not all(part.isdigit() for part in each.name.split("_")[1:]):
            raise bad(VARIABLE, each.name, "folders named triton_X_Y_Z: SGLang makes numbers of X, Y and Z")
    files = sorted(configs.glob("triton_*/E=*.json"))
    for path in files:
        entries = read(path)
        if path.stem.endswith("_down"):
            partner = path.with_name(path.name.replace("_down.json", ".json"))
            if not partner.exists():
                raise bad(VARIABLE, path.name, f"{partner.name} beside it: down options alone are not for SGLang's own")
            check_pair(read(partner), entries, path.name)
    return files


def load(root: Path, num_experts: int, width: int, device: str, *, dtype: str | None = None, triton: str | None = None):
    """{tokens: MoEConfig} as SGLang would take them from the folder of one Triton version, on the gate_up file's keys.

    Raises:
        BadInput, Unavailable: as `read` and `check_pair`.
    """
    home = folder(root, triton)
    gate_up = read(home / file_name(num_experts, width, device, dtype=dtype))
    path = home / file_name(num_experts, width, device, dtype=dtype, down=True)
    down = read(path) if path.exists() else gate_up
    check_pair(gate_up, down, path.name)
    return {tokens: MoEConfig(tile(options), tile(down[nearest(down, tokens)])) for tokens, options in gate_up.items()}
