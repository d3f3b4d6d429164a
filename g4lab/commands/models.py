"""`g4lab models`."""

import sys
from typing import Annotated

import typer

from g4lab.gemma4.specs import FULL
from g4lab.gemma4.tables import layers_frame, models_frame


def command(
    model: Annotated[str | None, typer.Argument(help="Show this model layer by layer.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The Gemma-4 models g4lab knows: parameters, layers, heads, KV bytes per token; or one model's layers.

    Examples:

    - `g4lab models`
    - `g4lab models e2b`
    - `g4lab models 26b-a4b --json`
    """
    frame = layers_frame(model) if model else models_frame()
    if json:
        typer.echo(frame.reset_index().to_json(orient="records"))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 170
    Console(width=width).print(_layers_table(model, frame) if model else _models_table(frame))


def _models_table(frame):
    from rich.table import Table

    table = Table(title="Gemma-4 text models; s | f: sliding | full-attention layers", title_justify="left")
    for header in ("model", "parameters", "active", "bf16 GB", "layers s | f", "write KV", "experts", "q heads"):
        table.add_column(header, justify="left" if header == "model" else "right")
    for header in ("kv heads s | f", "head dim s | f", "window", "KV bytes/token s | f"):
        table.add_column(header, justify="right")
    for row in frame.itertuples():
        table.add_row(
            row.Index,
            _count(row.parameters),
            _count(row.active),
            f"{row.weights_gb:.3g}",
            f"{row.sliding_layers} | {row.full_layers}",
            str(row.kv_writing_layers),
            f"{row.top_k} of {row.experts}" if row.experts else "-",
            str(row.q_heads),
            f"{row.kv_heads_sliding} | {row.kv_heads_full}",
            f"{row.head_dim_sliding} | {row.head_dim_full}",
            str(row.window),
            f"{row.kv_bytes_sliding:,} | {row.kv_bytes_full:,}",
        )
    return table


def _layers_table(model, frame):
    from rich.table import Table

    table = Table(title=f"{model}, layer by layer", title_justify="left")
    for header in (
        "layer",
        "kind",
        "q heads",
        "kv heads",
        "head dim",
        "window",
        "projects",
        "reads KV of",
        "MLP width",
    ):
        table.add_column(header, justify="left" if header in ("kind", "projects") else "right")
    for row in frame.itertuples():
        window = "all" if row.kind == FULL else str(row.window)
        source = "itself" if row.kv_source == row.Index else f"layer {row.kv_source}"
        heads = (str(row.num_q_heads), str(row.num_kv_heads), str(row.head_dim))
        table.add_row(str(row.Index), row.kind, *heads, window, row.qkv_mode, source, f"{row.intermediate_size:,}")
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"
