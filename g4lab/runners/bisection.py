"""Which patch moves the model? The same prompts on SGLang's real server with each patch alone and with every pair.

SGLang PR #26588 found by such a table that two of its fusions, and most of all both together, had cost accuracy. Here a
configuration is held against none: no patches but the corrections that are on by default, which are on in both. A
second server with none gives the noise. Every configuration has a server of its own, one after another.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.patches import REGISTRY, parse
from g4lab.quality.bisection import MARGIN, Answer, Bisection, Row, judge, measure
from g4lab.quality.tokens import random_prompts
from g4lab.runners.answers import ROUTING_ARGS, ask, keep, kept
from g4lab.runners.server import sglang_server
from g4lab.runners.server_command import choose_device, server_command

BASE = "default"
PROMPT_LENS = (8, 40, 100, 150)  # the tiny twins' windows are 64
NEW_TOKENS = 8
START_S = {"cpu": 15, "cuda": 120}  # of a tiny twin on two idle cores; of a large model mostly its weights
WHOLE_VOCABULARY = 4096  # up to here every token's log-probability is asked for
TOP = 128  # above
_FILE = "answers.npz"


def candidates() -> tuple[str, ...]:
    """The patches that a bisection looks at: not the corrections, and none that has to be asked for."""
    return tuple(name for name, patch in REGISTRY.items() if not patch.default_on and not patch.opt_in)


def configurations(given: Iterable[str] | None = None, pairs: bool = True) -> list[tuple[str, ...]]:
    """Sets of patches to hold against none: each of `given` ("router", or "router,qkv_norm"), and every pair of them.

    Raises:
        BadInput: a name that is no patch, a correction that is on anyway, or an empty list.
    """
    singles = [_patches(text) for text in (candidates() if given is None else given)]
    if not singles:
        raise bad("candidates", "nothing", f"at least one of {', '.join(candidates())}")
    together = [tuple(dict.fromkeys(a + b)) for a, b in itertools.combinations(singles, 2)] if pairs else []
    return list({frozenset(names): names for names in reversed(singles + together)}.values())[::-1]


def _patches(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    added = tuple(name for name in parse(",".join([BASE, *names])) if name not in parse(BASE))
    if not names or set(added) != set(names):
        raise bad("candidates", text, f"names of patches that are off by default ({', '.join(candidates())})")
    return added


def bisect(
    model: str | Path,
    candidates: Sequence[str] | None = None,
    pairs: bool = True,
    prompts: Sequence[Sequence[int]] | None = None,
    *,
    prompt_lens: Sequence[int] = PROMPT_LENS,
    new_tokens: int = NEW_TOKENS,
    top: int | None = None,
    draft: str | Path | None = None,
    dtype: str | None = None,
    noise: int = 1,
    seed: int = 1,
    folder: Path | str | None = None,
    server: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bisection:
    """Serve `model` with none, with none again, and with every configuration; compare what it says to the same prompts.

    Compared are prompt positions and, until the tokens part, answer positions: so both read the same tokens (teacher
    forcing for the prompt), and drift is never the drift of another text.

    Args:
        candidates: patches, or sets of patches such as "router,qkv_norm"; default all that are no corrections.
        pairs: add every pair of candidates.
        prompts: token ids, at least two each; default one random prompt for each of `prompt_lens`.
        new_tokens: greedy tokens of every answer.
        top: log-probabilities asked for at a position; default the whole vocabulary up to 4096 tokens, above that 128.
        draft: folder of an MTP assistant: speculative decoding in every configuration.
        dtype: default bfloat16, where rounding shows; float32 with a draft on a CPU, which can do no other.
        noise: how many more servers with none give the noise.
        folder: keeps each finished configuration's answers and every server's log; the same call with the same folder
            goes on where it was ended. Default a new temporary one.
        server: more arguments for sglang_server (device, attention_backend, args, env).
        progress: called with a line for every step.

    Raises:
        BadInput: before any server starts, for an argument that cannot work or a folder of another bisection.
        Unavailable: a server with none did not start or died. Where one with patches does, its row says so.
    """
    sets = configurations(candidates, pairs)
    if noise < 1:
        raise bad("noise", noise, "at least 1 more server with none")
    if new_tokens < 1:
        raise bad("new_tokens", new_tokens, "at least 1")
    folder = Path(folder or tempfile.mkdtemp(prefix="g4lab-bisect-"))
    server = dict(server or {}, draft=draft)
    on_cpu = choose_device(server.get("device")) == "cpu"
    server["dtype"] = dtype or ("float32" if draft and on_cpu else "bfloat16")
    config = served_config(model, server, folder)
    vocab = config["vocab_size"]
    asked = {
        "new_tokens": new_tokens,
        "top": min(top or (vocab if vocab <= WHOLE_VOCABULARY else TOP), vocab),
        "num_layers": config["num_hidden_layers"] if config.get("enable_moe_block") else None,
    }
    prompts = _checked(random_prompts(prompt_lens, vocab, seed) if prompts is None else prompts, vocab)
    said = {name: str(value) for name, value in server.items() if value is not None}
    parameters = {"base": BASE, "prompt_lens": [len(prompt) for prompt in prompts], **asked, "variables": _variables()}
    whole = {"model": str(model), "prompts": [list(map(int, prompt)) for prompt in prompts], **parameters, **said}
    _claim(folder, whole)

    rows: list[Row] = []
    base: list[Answer] = []
    runs = [((), "none"), *(((), f"none-{i + 2}") for i in range(noise)), *((names, "+".join(names)) for names in sets)]
    for number, (names, label) in enumerate(runs, start=1):
        started, old = time.monotonic(), (folder / label / _FILE).exists()
        answers, problem = _visit(model, names, folder / label, server, prompts, asked, must=not names)
        took = "kept from before" if old else f"took {time.monotonic() - started:.0f} s"
        progress(f"{number} of {len(runs)}: {label} {took}{f' ({problem})' if problem else ''}")
        if not base:
            base = answers
        elif answers is None:
            rows.append(Row(names, problem=problem))
        else:
            rows.append(measure(base, answers, vocab, names, noise=not names, problem=problem))
    # A record tells names, not where this machine keeps the model.
    said |= {"draft": Path(draft).name} if draft else {}
    parameters |= {"model": Path(model).name, "noise_servers": noise, **said}
    return judge(rows, Path(model).name, _notes(asked, vocab, server, on_cpu, rows), parameters)


def _variables() -> dict[str, str]:
    """What this process's environment tells the servers: chosen roundings, and SGLang's own settings."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("SGLANG_") or k.endswith("_ROUNDING")}


def served_config(model: str | Path, server: Mapping[str, Any], folder: Path) -> dict:
    """The text config of the checkpoint to serve; every argument of the server is checked on the way."""
    given = {name: value for name, value in server.items() if name not in ("env", "args", "deadline_s")}
    launch = server_command(model, BASE, server.get("args", ()), folder=folder, **given)
    config = json.loads((launch.checkpoint / "config.json").read_text())
    return config.get("text_config", config)


def _checked(prompts: Sequence[Sequence[int]], vocab: int) -> Sequence[Sequence[int]]:
    if not prompts:
        raise bad("prompts", "none", "at least one")
    for prompt in prompts:
        if len(prompt) < 2:
            raise bad("prompts", f"{len(prompt)} tokens", "at least 2 each (nothing stands before the first)")
        if not all(0 <= token < vocab for token in prompt):
            raise bad("prompts", max(prompt, key=abs), f"token ids from 0 to {vocab - 1}")
    return prompts


def _claim(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Make `folder` this bisection's, or go on with it where it is this one's already."""
    made_by = {"versions": env.versions(), "commit": env.commit()[0]}
    content = json.dumps({**parameters, **made_by}, sort_keys=True, indent=1)
    path = folder / "bisection.json"
    if path.exists() and path.read_text() != content:
        raise bad("folder", str(folder), "a new one, or one of the same model, prompts, options, versions and commit")
    env.atomic_write(path, content)


def _visit(
    model: str | Path,
    names: tuple[str, ...],
    folder: Path,
    server: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    asked: Mapping[str, Any],
    must: bool,
) -> tuple[list[Answer] | None, str]:
    """The answers of one configuration, from its file or from a new server, and what is wrong with it, if anything."""
    file = folder / _FILE
    if file.exists():
        answers, said = kept(file)
        return answers, said["problem"]
    routing = asked["num_layers"] is not None
    patches = ",".join([BASE, *names, *(["routed_experts"] if routing else [])])
    # Nothing of an earlier prompt may be reused: its slots would hold an earlier step's log-probabilities and experts.
    args = [*server.get("args", ()), "--disable-radix-cache", *(ROUTING_ARGS if routing else ())]
    try:
        with sglang_server(model, patches, **{**server, "args": args}, log_dir=folder) as running:
            answers = [ask(running, prompt, **asked) for prompt in prompts]
            calls, states = running.counters(), running.states()
    except Unavailable as error:
        if must:
            raise
        return None, str(error).splitlines()[0].split("; its log")[0]
    idle = [f"{name} never ran" for name in names if states.get(name) == "on" and not calls.get(name)]
    off = [f"{name} {states.get(name, 'not loaded')}" for name in names if states.get(name) != "on"]
    keep(answers, file, problem="; ".join(off + idle))
    return answers, "; ".join(off + idle)


def _notes(
    asked: Mapping[str, Any], vocab: int, server: Mapping[str, Any], on_cpu: bool, rows: Sequence[Row]
) -> list[str]:
    notes = [f"none: the corrections that are on by default ({', '.join(parse(BASE))}), on in every configuration"]
    if asked["top"] < vocab:
        notes.append(f"KL of the {asked['top']} likeliest of {vocab} tokens and one bucket: a lower bound")
    if on_cpu:
        notes.append("on a CPU, kernels in Triton's interpreter: rounding as there, not as on a GPU")
    if server["dtype"] == "float32":
        notes.append("float32: what rounds differently in bfloat16 hardly shows")
    again = [row for row in rows if row.noise]
    exact = all(row.drift_max == 0 and not row.flips_pct for row in again)
    said = f"noise: {len(again)} more server{'s' * (len(again) > 1)} with none"
    return [*notes, f"{said}, equal bit for bit" if exact else f"{said}; beyond it is more than {MARGIN:g} times it"]
