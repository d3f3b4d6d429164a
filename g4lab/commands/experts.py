"""`g4lab experts`: how a served model routes."""

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to SGLang as they are.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens of a step; may be given again.", show_default="1, 8, 32 and 1024")
    ] = None,
    patches: Annotated[str, typer.Option(help="What else to switch on; see `g4lab serve --help`.")] = "none",
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
) -> None:
    """How many experts the steps of a real server use, and the most tokens that one gets, by the size of the step.

    Random weights do not route as a trained model does: this belongs beside every MoE or serving figure made with them.
    Adds a record.

    Examples:

    - `g4lab experts tiny-moe --tokens 1 --tokens 64`
    - `g4lab experts 26b-a4b --patches none,spread_dummy -- --load-format dummy`
    """
    from rich.console import Console

    from g4lab import records
    from g4lab.commands._table import frame_table
    from g4lab.runners import expert_load as runner

    sizes = tokens or [1, 8, 32, 1024]
    serving = {"device": device, "attention_backend": attention_backend}
    found = runner.expert_load(model, sizes, patches, args or (), **serving)
    table = runner.summary(found)
    Console().print(frame_table(table.round(1)))
    *_, largest = table.itertuples()
    print(
        f"{largest.used_mean:.0f} of {largest.experts} experts used by {largest.tokens} tokens, at most "
        f"{largest.most_tokens_on_one} of them on one"
    )
    made = records.new_record("expert_load", runner.values(found), {"model": model, "patches": patches})
    print(f"record {made.id[:8]} in {records.append(made)}")
