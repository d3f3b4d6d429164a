"""Make a bundle: fetch, cut, check that nothing is missing, pack, and say what is in it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import filelock

from g4lab import env
from g4lab.bundle import checkout, closure, manifest, parcels, stand_ins, wheels
from g4lab.bundle.fetch import fetch
from g4lab.bundle.node import Node, read_node
from g4lab.bundle.recipe import Recipe, read_recipe
from g4lab.errors import bad
from g4lab.gemma4 import spec
from g4lab.gemma4.checkpoint import sglang_overrides, write_checkpoint
from g4lab.gemma4.folder import checkpoint_folder

MODEL = "26b-a4b"
Say = Callable[[str], None]


def make(
    out: Path,
    python: str = "3.12",
    torch: str = "2.11",
    limit: int = 55 * 2**20,
    node: Path | None = None,
    say: Say = lambda line: None,
) -> dict:
    """Write the bundle to the folder `out` and return its manifest; an earlier bundle there is replaced whole.

    The same inputs give the same bytes. Downloads are kept in g4lab's cache folder.

    Args:
        limit: bytes that a parcel may have.
        node: a node file; None is the shipped bundle/node-cuda13.toml.
        say: called with a line at each step.

    Raises:
        BadInput: no recipe for this Python and torch, a node of another Python or torch, a requirement that neither
            travels nor is there, or an `out` with files that g4lab did not write.
        Unavailable: no network, no git checkout, or no binutils.
    """
    recipe, target = read_recipe(python, torch), read_node(node)
    _same_kind(recipe, target)
    parcels.check_limit(limit)
    with (
        checkpoint_folder(out, {"bundle": {"python": python, "torch": torch}}) as folder,
        tempfile.TemporaryDirectory() as work,
    ):
        files, cuts = _wheels(recipe, target, Path(work), say)
        say("checking that every requirement travels or is there")
        carried = [wheels.metadata(path) for path in files.values()]
        closure.check(carried, target.packages, recipe.left_out, python)
        say(f"adding the checkout, and {MODEL}'s configuration and tokenizer")
        model = _model(Path(work) / "model")
        for name, contents in (("checkout.tar.gz", checkout.files()), ("model.tar.gz", model)):
            files[name] = checkout.pack(contents, Path(work) / name)
        say("packing")
        content = manifest.about(recipe, target, carried, cuts, limit)
        content |= manifest.pack(files, limit, folder)
        manifest.write(content, folder)
    return content


def _same_kind(recipe: Recipe, node: Node) -> None:
    there = node.packages.get("torch", "")
    if node.python != recipe.python or not there.startswith(f"{recipe.torch}."):
        raise bad(
            "node", f"{node.name}: Python {node.python}, torch {there}", f"Python {recipe.python}, torch {recipe.torch}"
        )


def _wheels(recipe: Recipe, node: Node, work: Path, say: Say) -> tuple[dict[str, Path], list[dict]]:
    """Member name -> wheel, and what was cut from which."""
    say(f"fetching {len(recipe.pins)} wheels (about 0.5 GB the first time)")
    files, cuts = {}, []
    for wheel in _fetched(recipe, node):
        name = wheels.metadata(wheel).name
        if cut := recipe.slim.get(name):
            say(f"cutting {name}: {cut.why}")
            wheel, done = wheels.slim(wheel, work, cut.drop, cut.strip)
            cuts.append({"package": name, **asdict(cut), **asdict(done)})
        files[f"site/{wheel.name}"] = wheel
    say("building g4lab's wheel and the stand-ins")
    for place, wheel in (("site", stand_ins.make_wheel(recipe.stand_ins, work)), ("g4lab", checkout.make_wheel(work))):
        files[f"{place}/{wheel.name}"] = wheel
    return files, cuts


def _fetched(recipe: Recipe, node: Node) -> list[Path]:
    """The lock's wheels in the cache, in a folder of their own for this lock and node."""
    made_of = recipe.lock.read_bytes() + " ".join(node.platforms).encode()
    folder = env.cache_dir() / "wheels" / hashlib.sha256(made_of).hexdigest()[:10]
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        return fetch(recipe, node, folder)


def _model(folder: Path) -> dict[str, bytes]:
    """A folder for --load-format dummy whose config.json names the head dimensions as SGLang does, not Hugging Face."""
    write_checkpoint(spec(MODEL), folder, weights=False)
    config = folder / "config.json"
    names = json.loads(config.read_text())
    config.write_text(json.dumps(names | sglang_overrides(names), indent=2) + "\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}
