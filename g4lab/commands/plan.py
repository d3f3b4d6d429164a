"""`g4lab plan`."""

import re
from typing import Annotated

import typer

from g4lab.errors import bad

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def command(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`).")],
    kv_bytes: Annotated[str | None, typer.Option(help="Memory for KV on one rank: 109G, 40Gi, 12345678.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Instead: a card's memory, of which bf16 weights and --reserve are taken off.")
    ] = None,
    reserve: Annotated[float, typer.Option(help="Share of --gpu-memory kept for graphs and activations.")] = 0.12,
    ratio: Annotated[str, typer.Option(help="--swa-full-tokens-ratio, or auto for the best.")] = "0.8",
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 8000,
    output: Annotated[int, typer.Option(help="Tokens of an answer.")] = 1000,
    concurrency: Annotated[int, typer.Option(help="Requests wanted at once.")] = 80,
    page_size: Annotated[int, typer.Option(help="SGLang's --page-size.")] = 1,
    tp: Annotated[int, typer.Option(help="Ranks.")] = 1,
    dtype_bytes: Annotated[int, typer.Option(help="Of one KV element: 2 bfloat16, 1 fp8.")] = 2,
    draft: Annotated[bool, typer.Option("--draft", help="With the MTP assistant, 4 draft tokens.")] = False,
    writers_only: Annotated[
        bool,
        typer.Option("--kv-layers", help="With patch kv_layers: KV only for layers that write it."),
    ] = False,
) -> None:
    """The sizes of the two KV pools that SGLang makes, how many requests fit, and which pool is full first.

    Examples:

    - `g4lab plan 26b-a4b --kv-bytes 109G`
    - `g4lab plan 31b --gpu-memory 141G --ratio auto --prompt 8000 --output 1000 --concurrency 80 --draft`
    - `g4lab plan e4b --kv-bytes 40Gi --ratio auto --tp 2 --kv-layers`
    """
    from rich.console import Console
    from rich.table import Table

    from g4lab.gemma4 import spec
    from g4lab.kvpool import Scheduling, Workload, best_ratio, plan
    from g4lab.kvpool.plan import ASSISTANT_LAYERS, DEFAULT_RATIO

    of = spec(model)
    memory = _memory(of, kv_bytes, gpu_memory, reserve, tp)
    options = {
        "page_size": page_size,
        "tp": tp,
        "dtype_bytes": dtype_bytes,
        "draft_layers": ASSISTANT_LAYERS if draft and not writers_only else 0,
        "writers_only": writers_only,
        "scheduling": Scheduling(page_size=page_size, draft_tokens=4 if draft else 0),
    }
    workload = Workload.fixed(prompt, output, concurrency)
    best = best_ratio(of, workload, kv_bytes=memory, **options)
    asked = best.ratio if ratio == "auto" else _number(ratio)
    shown = {asked: "asked for", DEFAULT_RATIO: "SGLang's default", best.ratio: "best"}
    table = Table("", *(f"{at:g} ({what})" for at, what in shown.items()))
    plans = [plan(of, memory, ratio=at, workload=workload, **options) for at in shown]
    rows = {
        "full pool, tokens": lambda p: f"{p.full_tokens:,}",
        "sliding pool, tokens": lambda p: f"{p.swa_tokens:,}",
        "full pool, GB": lambda p: f"{p.full_bytes / 1e9:.2f}",
        "sliding pool, GB": lambda p: f"{p.swa_bytes / 1e9:.2f}",
        "charged for drafts, GB": lambda p: f"{p.draft_bytes / 1e9:.2f}",
        f"requests of {prompt}/{output} that fit": lambda p: f"{p.fit.requests:,}",
        "full first": lambda p: {"full": "full pool", "swa": "sliding pool"}[p.fit.binds],
        f"holds {concurrency} at once": lambda p: "yes" if p.fit.enough else "no",
    }
    for name, text in rows.items():
        table.add_row(name, *map(text, plans))
    Console().print(f"{model}, {memory / 1e9:.2f} GB for KV on each of {tp} rank(s)")
    Console().print(table)


def _memory(of, kv_bytes: str | None, gpu_memory: str | None, reserve: float, tp: int) -> int:
    if (kv_bytes is None) == (gpu_memory is None):
        raise bad("--kv-bytes", kv_bytes, "memory for KV, or --gpu-memory, one of the two")
    if kv_bytes is not None:
        return _bytes("--kv-bytes", kv_bytes)
    if not 0 <= reserve < 1:
        raise bad("--reserve", reserve, "from 0 to below 1")
    from g4lab.gemma4.costs import total_parameters

    card, weights = _bytes("--gpu-memory", gpu_memory), total_parameters(of) * 2 // tp
    left = int(card * (1 - reserve)) - weights
    if left <= 0:
        raise bad(
            "--gpu-memory", gpu_memory, f"more than the weights on a rank, {weights / 1e9:.1f} GB, and the reserve"
        )
    return left


def _bytes(name: str, text: str) -> int:
    """ "109G" -> 109 * 10**9, "40Gi" -> 40 * 2**30."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if not number:
        raise bad(name, text, "bytes, such as 109G, 40Gi or 12345678")
    return int(float(number[1]) * UNITS[number[2] or ""])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise bad("--ratio", text, "auto, or a number above 0 and at most 1") from None
