"""Serving A/B on real servers: two configurations, measured in turns with SGLang's own client.

A round is A B B A, so a drift that is linear in time cancels.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from g4lab import env
from g4lab.errors import bad
from g4lab.patches import parse
from g4lab.runners.acceptance import acceptance
from g4lab.runners.client import bench_serving
from g4lab.runners.comparison import ROUND, Comparison, Visit, compare
from g4lab.runners.finished import export_args, finished
from g4lab.runners.results import BenchResult
from g4lab.runners.server import Server, sglang_server

_WARMUPS = 4  # before each visit, or as many as its prompts where those are fewer


def ab(
    model: str | Path,
    a: str = "none",
    b: str = "default",
    *,
    rounds: int = 3,
    num_prompts: int = 16,
    input_len: int = 64,
    output_len: int = 16,
    fresh: bool | None = None,
    seed: int = 1,
    server: Mapping[str, Any] | None = None,
    server_args: tuple[Sequence[str], Sequence[str]] = ((), ()),
    drafts: tuple[str | Path | None, str | Path | None] = (None, None),
    client: Mapping[str, Any] | None = None,
    observe: Callable[[Server], Mapping[str, float]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Serve `model` with patches `a` and with patches `b`, and measure both in `rounds` rounds of A B B A.

    The four visits of a round send the same prompts; another round sends others.

    Args:
        fresh: start a new server for every visit; default on a GPU, where two do not fit. Otherwise both stay alive
            (and sleep when idle), and the A/A interval does not hold what differs from one server process to the next.
        server: more arguments for sglang_server, for both sides. client: more arguments for bench_serving.
        server_args: SGLang's flags of A and of B alone, for sides that differ in more than patches.
        drafts: folders of A's and of B's MTP assistant; None serves without speculative decoding.
        observe: called with the server after each of its benchmarks; what it returns stays with the visit.
        progress: called with a line for every step.

    Raises:
        BadInput: an argument that cannot work. Unavailable: a server or the client failed.
    """
    if rounds < 1:
        raise bad("rounds", rounds, "at least 1")
    patches = {"A": a, "B": b}
    names = {side: parse(text) for side, text in patches.items()}
    server = dict(server or {})
    on_gpu = server.get("device", "cuda" if env.has_gpu() else "cpu") == "cuda"
    fresh = on_gpu if fresh is None else fresh
    if any(drafts) and not on_gpu:
        server.setdefault("attention_backend", "triton")  # the one that verifies drafts on a CPU, so for both sides
    labels = tuple(_label(*side) for side in zip((a, b), server_args, drafts, strict=True))
    parameters = {"rounds": rounds, "num_prompts": num_prompts, "prompt_len": input_len, "answer_len": output_len,
                  "fresh": fresh, "seed": seed, "a": labels[0], "b": labels[1], "model": Path(model).name}  # fmt: skip
    parameters |= {name: client[name] for name in ("request_rate", "max_concurrency") if client and name in client}
    common = [*server.pop("args", ()), *(() if fresh else ("--sleep-on-idle",))]
    load = {"num_prompts": num_prompts, "input_len": input_len, "output_len": output_len, **(client or {})}
    warmups = min(_WARMUPS, num_prompts)
    load["extra_args"] = [*load.get("extra_args", ()), "--warmup-requests", str(warmups)]

    @contextlib.contextmanager
    def start(side: str) -> Iterator["_Side"]:
        progress(f"starting {side} ({names[side] or 'no patches'})")
        own, draft = server_args["AB".index(side)], drafts["AB".index(side)]
        with tempfile.TemporaryDirectory(prefix="g4lab-finished-") as folder:
            args = [*common, *own, *export_args(folder)]
            with sglang_server(model, patches[side], args, **{"draft": draft, **server}) as running:
                yield _Side(side, running, folder, warmups)

    visits = []
    with contextlib.ExitStack() as kept:
        alive: dict[str, _Side] = {}
        for number in range(rounds):
            for position, side in enumerate(ROUND):
                with contextlib.ExitStack() as once:
                    running = alive.get(side) or (once if fresh else kept).enter_context(start(side))
                    if not fresh:
                        alive[side] = running
                    visits.append(running.visit(number, position, {"seed": seed + number, **load}, observe))
                    progress(f"round {number + 1} of {rounds}, {side}: {_short(visits[-1].result)}")
    told = None if labels == (a, b) else labels
    return compare(visits, model=Path(model).name, a=a, b=b, fresh=fresh, labels=told, parameters=parameters)


class _Side:
    """A running server of one side, and how many of its finished requests have been counted."""

    def __init__(self, side: str, server: Server, folder: str, warmups: int) -> None:
        self._side, self._server, self._folder, self._warmups, self._counted = side, server, folder, warmups, 0

    def visit(self, number: int, position: int, load: Mapping[str, Any], observe) -> Visit:
        result = bench_serving(self._server, **load)
        served = finished(self._folder, self._counted + self._warmups + result.completed)
        measured, self._counted = served[-result.completed :], len(served)
        return Visit(
            self._side,
            number,
            position,
            result,
            self._server.counters(),
            observe(self._server) if observe else {},
            acceptance(measured),
            sum(request["cached_tokens"] for request in measured),
            sum(request["num_retractions"] for request in measured),
        )


def _label(patches: str, args: Sequence[str], draft: str | Path | None) -> str:
    return ", ".join([patches, *([" ".join(args)] if args else []), *([f"MTP ({Path(draft).name})"] if draft else [])])


def _short(result: BenchResult) -> str:
    return f"{result.output_tokens_per_s:.1f} output tokens/s, median TPOT {result.median_tpot_ms:.2f} ms"
