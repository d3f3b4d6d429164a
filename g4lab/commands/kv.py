"""The KV pools of a server, as its dumps tell."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.callback()
def _kv() -> None:
    """The KV pools of a server, as its dumps tell."""


@app.command()
def inspect(
    dump: Annotated[Path, typer.Argument(help="The .npz file that the patch kv_sentinel named when it raised.")],
    most: Annotated[int, typer.Option(help="Slots shown of each request.", min=1)] = 3,
) -> None:
    """Say which request would have read which wrong slot, at which position, and which slot is the right one.

    A server writes such a file when the patch kv_sentinel finds an index that attention must not read. It goes to
    $G4LAB_KV_DUMP_DIR, or to the folder for temporary files.

    Example:

    - `g4lab kv inspect kv-4711.npz`
    """
    from g4lab.kvpool.dump import explain, load

    print("\n".join(explain(load(dump), most)))


@app.command()
def ratio(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to both servers.")
    ] = None,
    kv_bytes: Annotated[int, typer.Option(help="Bytes of KV of each server.")] = 5_683_200,
    ratio_a: Annotated[float, typer.Option(help="--swa-full-tokens-ratio of side A.")] = 0.8,
    ratio_b: Annotated[str, typer.Option(help="Of side B: a number, or auto for the planned one.")] = "auto",
    num_prompts: Annotated[int, typer.Option(help="Prompts, sent at once.")] = 10,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 500,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of A B B A; at least 3 for a verdict.")] = 3,
    patches: Annotated[str, typer.Option(help="Of both sides; see `g4lab serve --help`.")] = "default",
    fresh: Annotated[
        bool | None, typer.Option("--fresh/--kept", help="A new server for every visit?", show_default="on a GPU")
    ] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
) -> None:
    """Serve with two ratios of the pools in the same bytes, and judge what the better split gains; adds a record.

    Examples:

    - `g4lab kv ratio tiny-moe`
    - `g4lab kv ratio 26b-a4b --kv-bytes 12000000000 --num-prompts 80 --input-len 8000 --output-len 1000`
    """
    from rich.console import Console

    from g4lab import records
    from g4lab.commands._table import frame_table
    from g4lab.errors import bad
    from g4lab.runners.ratio_experiment import ratio_experiment

    try:
        other = ratio_b if ratio_b == "auto" else float(ratio_b)
    except ValueError:
        raise bad("--ratio-b", ratio_b, "auto, or a number above 0 and at most 1") from None
    server = {"args": tuple(args or ())} | ({"attention_backend": attention_backend} if attention_backend else {})
    found = ratio_experiment(
        model, ratio_a, other, kv_bytes=kv_bytes, num_prompts=num_prompts, input_len=input_len, output_len=output_len,
        rounds=rounds, patches=patches, fresh=fresh, server=server, progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    Console(width=200).print(frame_table(found.scheduling().round(3)))
    print(f"verdict: {found.comparison.verdict}")
    parameters = {**found.comparison.parameters, "kv_bytes": kv_bytes, "ratios": [made.ratio for made in found.plans]}
    made = records.new_record("serving.ratio", found.values(), parameters)
    print(f"record {made.id[:8]} in {records.append(made)}")
