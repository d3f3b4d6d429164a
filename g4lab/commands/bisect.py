"""Find the patch that moves a model."""

from math import ceil
from pathlib import Path
from typing import Annotated

import typer

_BARS = "·▁▂▃▄▅▆▇█"


def command(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to every server.")
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option("--list", help='Sets of patches, "router|router_norm|router,router_norm".', show_default="all"),
    ] = None,
    pairs: Annotated[
        bool | None, typer.Option("--pairs/--alone", help="Add every pair?", show_default="unless there is a --list")
    ] = None,
    prompt_lens: Annotated[str, typer.Option(help="Tokens of each random prompt.")] = "8,40,100,150",
    new_tokens: Annotated[int, typer.Option(help="Greedy tokens of each answer.")] = 8,
    draft: Annotated[Path | None, typer.Option(help="Folder of an MTP assistant: speculative decoding.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="bfloat16; with MTP on a CPU float32"),
    ] = None,
    noise: Annotated[int, typer.Option(help="Servers with none that give the noise.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 1,
    folder: Annotated[
        Path | None,
        typer.Option(help="Keeps what is done; given again, the run goes on.", show_default="new, among the runs"),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Append a record?")] = True,
) -> None:
    """Say which patch, or pair of patches, moves a model's answers, against none and beyond the noise of none.

    Every configuration gets a real server of its own and the same prompts. Reported are log-probability drift and KL
    divergence, tokens routed to other experts (layer by layer), greedy tokens lost, and with MTP the accepted drafts.
    The corrections that are on by default are on throughout, in none as well.

    Examples:

    - `g4lab bisect tiny-moe`
    - `g4lab bisect tiny-moe --list "router|router_norm|router,router_norm" --csv table.csv`
    - `g4lab bisect /models/gemma-4-26B-A4B-it --draft /models/assistant --prompt-lens 512,2048 --noise 3`
    """
    import time

    from rich.console import Console

    from g4lab import env, records
    from g4lab.errors import bad
    from g4lab.runners.bisection import START_S, bisect, configurations
    from g4lab.runners.server_command import choose_device

    given = candidates.split("|") if candidates is not None else None
    pairs = given is None if pairs is None else pairs
    try:
        lens = [int(length) for length in prompt_lens.split(",")]
    except ValueError:
        raise bad("--prompt-lens", prompt_lens, "numbers of tokens, such as 8,40,150") from None
    servers = 1 + noise + len(configurations(given, pairs))
    minutes = servers * START_S[choose_device(device)] / 60
    folder = folder or records.runs_dir() / "bisect" / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(model).name}"
    console = Console()
    console.print(f"{servers} servers, one after another: at least {minutes:.0f} minutes", highlight=False)
    console.print(f"to go on after an interruption: --folder {folder}", highlight=False, soft_wrap=True)
    with console.status("serving") as status:

        def progress(line: str) -> None:
            console.print(line, highlight=False, soft_wrap=True)
            status.update(f"after {line.split(':')[0]}")

        found = bisect(
            model,
            given,
            pairs,
            prompt_lens=lens,
            new_tokens=new_tokens,
            draft=draft,
            dtype=dtype,
            noise=noise,
            seed=seed,
            folder=folder,
            server={"args": args or [], "device": device, "attention_backend": attention_backend},
            progress=progress,
        )
    console.print(drawn(found))
    print(found.verdict)
    for note in found.notes:
        print(f"note: {note}")
    if csv:
        layers = found.by_layer().add_prefix("flips_pct_layer_").reset_index(drop=True)
        env.atomic_write(csv, found.table().join(layers).to_csv(index=False))
        print(f"table in {csv}")
    if record:
        made = records.new_record("bisect", found.values(), found.parameters)
        print(f"record {made.id[:8]} in {records.append(made)}")


def drawn(found):
    """A bisection as a rich table; a column without any value is left out."""
    from pandas import isna
    from rich.table import Table
    from rich.text import Text

    table = found.table()
    columns = {
        "drift max": ("drift_max", "{:.3g}"),
        "mean": ("drift_mean", "{:.2g}"),
        "KL": ("kl_mean", "{:.2g}"),
        "top token other": ("top_changed_pct", "{:.2f} %"),
        "routed otherwise": ("flips_pct", "{:.2f} %"),
        "from layer": ("first_flip_layer", "{:.0f}"),
        "greedy lost": ("greedy_lost_pct", "{:.1f} %"),
        "accepted/verify": ("acceptance", "{:.3f}"),
    }
    columns = {title: how for title, how in columns.items() if table[how[0]].notna().any()}
    shown = Table(caption_justify="left")
    shown.add_column("against none", overflow="fold")
    for title in columns:
        shown.add_column(title)
    highest = max((share for row in found.rows for share in row.flips_by_layer), default=0)
    if highest:
        shown.add_column("by layer", no_wrap=True)
        shown.caption = f"by layer: tokens routed otherwise, full bar {highest:.2g} %"
    shown.add_column("beyond the noise in")
    for row, values in zip(found.rows, table.to_dict("records"), strict=True):
        cells = ["" if isna(values[name]) else form.format(values[name]) for name, form in columns.values()]
        if highest:
            cells.append("".join(_BARS[ceil(8 * share / highest)] for share in row.flips_by_layer))
        verdict = "the noise" if row.noise else "; ".join(filter(None, [", ".join(row.beyond) or "-", row.problem]))
        shown.add_row(row.name, *cells, Text(verdict, style="bold" if row.beyond else ""))
    return shown
