"""`g4lab profile`: capture forward passes of one phase and show where their time goes."""

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to SGLang as they are.")
    ] = None,
    runner: Annotated[str, typer.Option(help="hf (transformers, in this process) or sglang (the real server).")] = "hf",
    model: Annotated[str, typer.Option(help="A model's name (tiny-moe, 26b-a4b) or a checkpoint.")] = "tiny-moe",
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "decode",
    batches: Annotated[
        list[int] | None,
        typer.Option("--batch", help="Sequences in a step; given again, one more profile.", show_default="1"),
    ] = None,
    prompt_len: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    steps: Annotated[int, typer.Option(help="Forward passes to capture.")] = 3,
    patches: Annotated[str, typer.Option(help="What to switch on; see `g4lab serve --help`.")] = "none",
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="the GPU if there is one")] = None,
    dtype: Annotated[str | None, typer.Option(help="A torch dtype.", show_default="float32 on a CPU")] = None,
    attention_backend: Annotated[
        str | None, typer.Option(help="SGLang's attention backend.", show_default="torch_native on a CPU")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the trace and its provenance.")] = Path("runs/profile"),
    record: Annotated[Path | None, typer.Option(help="Also append the family table to this folder's records.")] = None,
) -> None:
    """Profile prefill or decode: writes a small trace, prints the family table.

    Warm-up stays outside the capture; shapes and stacks are not recorded. A large model's name gets random weights.
    On a CPU the table shows CPU operators: no kernel performance.

    Examples:

    - `g4lab profile --runner hf --model tiny-moe --phase prefill --prompt-len 64`
    - `g4lab profile --runner sglang --phase decode --batch 1 --batch 8 --steps 5` (one server, two profiles)
    - `g4lab profile --runner sglang --model 26b-a4b --patches default,spread_dummy -- --load-format dummy`
    """
    from rich.console import Console

    from g4lab import env
    from g4lab.commands._table import losses, show
    from g4lab.errors import bad
    from g4lab.trace import coverage, kernel_table, load

    if runner not in ("hf", "sglang"):
        raise bad("--runner", runner, "hf or sglang")
    if args and runner == "hf":
        raise bad("SGLANG ARGS", " ".join(args), "--runner sglang with them")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes on starting, stopping and finding no GPU
    env.interpret_without_gpu()  # before anything imports triton
    works = [
        {"phase": phase, "batch": batch, "prompt_len": prompt_len, "steps": steps, "out": out}
        for batch in batches or [1]
    ]
    console = Console(stderr=True)
    made = []
    with console.status(f"profiling {phase} of {model} on {runner}"):
        if runner == "hf":
            from g4lab.runners.profiling import profile_transformers

            for work in works:
                made.append(profile_transformers(model, patches=patches, device=device, dtype=dtype, **work))
        else:
            from g4lab.runners import sglang_server
            from g4lab.runners.captures import check
            from g4lab.runners.server_profile import profile_server

            for work in works:  # before a server is started
                check(phase, batch=work["batch"], prompt_len=prompt_len, steps=steps)
            serving = {"device": device, "dtype": dtype, "attention_backend": attention_backend or _backend(device)}
            with sglang_server(model, patches, args or (), **serving) as server:
                made += [profile_server(server, **work) for work in works]
    for work, file in zip(works, made, strict=True):
        trace = load(file)
        here = env.machine_name() + ("" if trace.has_gpu else ", CPU operators")
        trace.meta["provenance"] = ("live", f"{here}, {runner}, patches {patches}, batch {work['batch']}")
        for line in losses(trace):
            console.print(line, style="yellow", markup=False)
        families = kernel_table(trace, phase=phase)
        show([families, coverage(trace)], rows=None)
        typer.echo(f"trace in {file}")
        if record:
            said = work | {"runner": runner, "model": model, "patches": patches}
            typer.echo(f"record in {_record(record, families, said)}")


def _backend(device: str | None) -> str | None:
    from g4lab import env

    return "torch_native" if device == "cpu" or not env.has_gpu() else None


def _record(folder: Path, families, parameters: dict) -> Path:
    from g4lab import records

    del parameters["out"]
    of = "operators" if "CPU" in families.title else "kernels"
    rows = families.reset_index()[["family", "calls", "total_us", "share", "per_step_us"]].to_dict("records")
    made = records.new_record("profile.families", {"of": of, "families": rows}, parameters)
    return records.append(made, folder / "profile.families.jsonl")
