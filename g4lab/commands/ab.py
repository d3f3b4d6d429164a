"""Compare two configurations on real servers."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to both servers.")
    ] = None,
    a: Annotated[str, typer.Option("--a", help="Patches of side A.")] = "none",
    b: Annotated[str, typer.Option("--b", help="Patches of side B.")] = "default",
    args_a: Annotated[str, typer.Option(help="SGLang's flags for side A alone, in quotes.")] = "",
    args_b: Annotated[str, typer.Option(help="SGLang's flags for side B alone, in quotes.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of A B B A; at least 3 for a verdict.")] = 3,
    scenario: Annotated[
        str | None, typer.Option(help="A named load; the options below override it. `--scenario list` shows all.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Prompts of each visit.", show_default="16")] = None,
    input_len: Annotated[int | None, typer.Option(help="Tokens of a prompt.", show_default="64")] = None,
    output_len: Annotated[int | None, typer.Option(help="Tokens of an answer.", show_default="16")] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="Requests/s; inf sends all at once.", show_default="inf")
    ] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests in flight at most.")] = None,
    mtp: Annotated[
        bool, typer.Option("--mtp", help="Speculative decoding on both sides: 3 steps, 4 draft tokens.")
    ] = False,
    mtp_b: Annotated[bool, typer.Option("--mtp-b", help="On side B alone: MTP on against off.")] = False,
    draft: Annotated[
        Path | None, typer.Option(help="Folder of the MTP assistant; a tiny model has one of its own.")
    ] = None,
    fresh: Annotated[
        bool | None, typer.Option("--fresh/--kept", help="A new server for every visit?", show_default="on a GPU")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first round's prompts.")] = 1,
) -> None:
    """Serve A and B, two sets of patches or flags, measure both in turns with SGLang's client, and judge the effect.

    Prints throughput and the p50, p90 and p99 of TTFT, TPOT, ITL and E2E latency, the ratio B/A with its interval over
    rounds, the A/A interval of the same harness, and how many rounds would settle what these do not; adds a record, and
    beside it a Parquet file of every request.

    Examples:

    - `g4lab ab tiny-moe --a none --b none,router_scale --rounds 3`
    - `g4lab ab tiny-moe --scenario tiny-summarisation --b default --args-b "--swa-full-tokens-ratio 0.15"`
    - `g4lab ab tiny-moe --a default --b default --mtp-b --num-prompts 4`
    - `g4lab ab /models/gemma-4-26B-A4B-it --a default --b all --scenario steady --mtp --draft /models/assistant`
    - `g4lab ab tiny-moe --a none --b none` (what the harness gives for no change)
    """
    import shlex
    import sys

    from rich.console import Console

    from g4lab import env, records
    from g4lab.commands._table import frame_table
    from g4lab.errors import bad
    from g4lab.gemma4.assistant import ensure_assistant
    from g4lab.runners import ab, request_log, scenarios

    console = Console(width=None if sys.stdout.isatty() else 200)
    if scenario == "list":
        console.print(frame_table(scenarios.table().reset_index()))
        return
    if draft and not (mtp or mtp_b):
        raise bad("--draft", str(draft), "--mtp or --mtp-b beside it")
    load = {"num_prompts": 16, "input_len": 64, "output_len": 16, "client": {}}
    load |= scenarios.scenario(scenario).arguments() if scenario else {}
    given = {"num_prompts": num_prompts, "input_len": input_len, "output_len": output_len}
    load |= {name: value for name, value in given.items() if value is not None}
    arrivals = {"request_rate": request_rate, "max_concurrency": max_concurrency}
    load["client"] = load["client"] | {name: value for name, value in arrivals.items() if value is not None}
    assistant = (draft or ensure_assistant(model)) if mtp or mtp_b else None
    server = {"args": args or [], "device": device, "attention_backend": attention_backend}
    found = ab(
        model,
        a,
        b,
        rounds=rounds,
        fresh=fresh,
        seed=seed,
        server={name: value for name, value in server.items() if value is not None},
        server_args=(shlex.split(args_a), shlex.split(args_b)),
        drafts=(None if mtp_b else assistant, assistant),
        progress=lambda line: print(line, flush=True),
        **load,
    )
    console.print(frame_table(_shown(found.table())))
    if len(drafts := found.acceptance()):
        console.print(frame_table(drafts.round(3)))
    print(f"verdict: {found.verdict}")
    for note in found.notes:
        print(f"note: {note}")
    if not env.has_gpu():
        print("note: times of a CPU or of Triton's interpreter are no kernel times")
    record = records.new_record("serving.ab", found.values(), {**found.parameters, "scenario": scenario})
    path = records.append(record)
    kept = request_log.save(found.requests(), path.with_name(f"serving.ab-{record.id[:8]}.requests.parquet"))
    print(f"record {record.id[:8]} in {path}, its requests in {kept}")


def _shown(table):
    """The table for a terminal: each interval in one cell."""
    import pandas as pd

    def interval(prefix: str, middle: str) -> list[str]:
        ends = zip(table[middle], table[f"{prefix}low"], table[f"{prefix}high"], strict=True)
        return ["{:.3f} [{:.3f}, {:.3f}]".format(*three) for three in ends]

    smallest = [f"{100 * (ratio - 1):.0f} %" if ratio == ratio else "" for ratio in table["smallest"].astype(float)]
    columns = {
        "metric": table["metric"],
        "A": table["a"].map("{:.2f}".format),
        "B": table["b"].map("{:.2f}".format),
        "B/A": interval("", "ratio"),
        "A/A": interval("aa_", "aa_ratio"),
        "verdict": table["verdict"],
        "rounds needed": table["rounds_needed"].map(str).replace("<NA>", ">1000"),
        "these settle": smallest,
    }
    return pd.DataFrame(columns)
