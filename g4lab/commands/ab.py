"""Compare two sets of patches on real servers."""

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to both servers.")
    ] = None,
    a: Annotated[str, typer.Option("--a", help="Patches of side A.")] = "none",
    b: Annotated[str, typer.Option("--b", help="Patches of side B.")] = "default",
    rounds: Annotated[int, typer.Option(help="Rounds of A B B A; at least 3 for a verdict.")] = 3,
    num_prompts: Annotated[int, typer.Option(help="Prompts of each visit.")] = 16,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 64,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.")] = 16,
    request_rate: Annotated[float, typer.Option(help="Requests/s; inf sends all at once.")] = float("inf"),
    max_concurrency: Annotated[int | None, typer.Option(help="Requests in flight at most.")] = None,
    fresh: Annotated[
        bool | None, typer.Option("--fresh/--kept", help="A new server for every visit?", show_default="on a GPU")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first round's prompts.")] = 1,
) -> None:
    """Serve with patches A and with patches B, measure both in turns with SGLang's own client, and judge the effect.

    Prints medians, the ratio B/A with its bootstrap interval, and the A/A interval of the same harness; adds a record.

    Examples:

    - `g4lab ab tiny-moe --a none --b none,router_scale --rounds 3`
    - `g4lab ab /models/gemma-4-26B-A4B-it --a default --b router --num-prompts 80 --input-len 1024 --output-len 256`
    - `g4lab ab tiny-moe --a none --b none` (what the harness gives for no change)
    """
    from rich.console import Console
    from rich.table import Table

    from g4lab import env, records
    from g4lab.runners import ab

    server = {"args": args or [], "device": device, "attention_backend": attention_backend}
    found = ab(
        model,
        a,
        b,
        rounds=rounds,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        fresh=fresh,
        seed=seed,
        server={name: value for name, value in server.items() if value is not None},
        client={"request_rate": request_rate, "max_concurrency": max_concurrency},
        progress=lambda line: print(line, flush=True),
    )
    table = Table("metric", "A", "B", "B/A", "A/A", "verdict")
    for e in found.effects:
        table.add_row(e.metric, f"{e.a:.2f}", f"{e.b:.2f}", str(e.ratio), str(e.aa), e.verdict)
    Console().print(table)
    for note in found.notes:
        print(f"note: {note}")
    if not env.has_gpu():
        print("note: times of a CPU or of Triton's interpreter are no kernel times")
    record = records.new_record("serving.ab", found.values(), found.parameters)
    print(f"record {record.id[:8]} in {records.append(record)}")
