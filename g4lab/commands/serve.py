"""Serve a model with SGLang, patched or not."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[
        str, typer.Argument(help="A model's name (`g4lab models`), a checkpoint folder, or a cached model.")
    ],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to SGLang as they are.")
    ] = None,
    patches: Annotated[str, typer.Option(help="default, none, all, or names; -name takes one out.")] = "default",
    port: Annotated[int | None, typer.Option(help="The port to listen on.", show_default="any free one")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="On a CPU torch_native or triton.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    draft: Annotated[Path | None, typer.Option(help="Folder of an MTP assistant: speculative decoding.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder of the server's log.", show_default="a temporary one")
    ] = None,
) -> None:
    """Start the real SGLang server, say which patches went on, and serve until interrupted.

    Examples:

    - `g4lab serve tiny-moe`
    - `g4lab serve tiny-moe --attention-backend triton --patches all --port 30000`
    - `g4lab serve 26b-a4b --patches none -- --load-format dummy --enable-metrics`
    """
    import signal
    import time

    from g4lab.runners import sglang_server

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    print("starting ...", flush=True)
    with sglang_server(
        model,
        patches,
        args or (),
        port=port,
        device=device,
        attention_backend=attention_backend,
        dtype=dtype,
        draft=draft,
        log_dir=log_dir,
    ) as server:
        states = ", ".join(f"{name} {state}" for name, state in sorted(server.states().items())) or "none"
        print(
            f"{server.url} is ready after {time.monotonic() - started:.0f} s; log {server.log_path}\npatches: {states}",
            flush=True,
        )
        while True:
            server.check()
            time.sleep(1)
