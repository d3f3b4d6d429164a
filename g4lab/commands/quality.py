"""Evaluate a server's answers, compare two variants on the same questions, and say how many questions a claim needs."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)

Set = Annotated[str, typer.Option("--set", help="probe (ours, in data/eval), mmlu or gsm8k.")]
Local = Annotated[Path | None, typer.Option(help="Local files of mmlu or gsm8k.", show_default="the datasets package")]
Limit = Annotated[
    int | None, typer.Option(help="So many questions, chosen by a hash of their content.", show_default="all")
]
Shots = Annotated[int, typer.Option(help="Worked examples before each question.")]
By = Annotated[str, typer.Option(help="generate, or logprobs: the likeliest letter, multiple choice only.")]
NewTokens = Annotated[
    int | None, typer.Option(help="Of a generated answer.", show_default="8 for a letter, 256 for a number")
]
Concurrency = Annotated[int, typer.Option(help="Requests in flight; 1 leaves the batches' share of the noise out.")]
ServerArgs = Annotated[list[str] | None, typer.Argument(metavar="[-- SGLANG ARGS]", help="Passed to every server.")]
Draft = Annotated[Path | None, typer.Option(help="Folder of an MTP assistant: speculative decoding.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")]
Seed = Annotated[int, typer.Option(help="Of the choice of questions and examples.")]


@app.command("run")
def run_(
    model: Annotated[str, typer.Argument(help="A model's name, a checkpoint folder, or the URL of a running server.")],
    args: ServerArgs = None,
    set_: Set = "probe",
    path: Local = None,
    limit: Limit = None,
    shots: Shots = 0,
    by: By = "generate",
    max_new_tokens: NewTokens = None,
    concurrency: Concurrency = 8,
    api: Annotated[str, typer.Option(help="completions, or chat for a tuned model's chat template.")] = "completions",
    patches: Annotated[str, typer.Option(help="Of the server that is started; a URL's are its own.")] = "default",
    draft: Draft = None,
    device: Device = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's file; given again, the run goes on.", show_default="new, among the runs"),
    ] = None,
) -> None:
    """Put a set of questions to a server and grade the answers; one line each in a file, and a record.

    Prompts are worded by this project: scores compare with runs of this command only, not with model cards.

    Examples:

    - `g4lab quality run tiny-moe --limit 24 --by logprobs` (a random model: at chance)
    - `g4lab quality run http://127.0.0.1:30000 --set mmlu --path mmlu/data --shots 5 --by logprobs --out mmlu.jsonl`
    - `g4lab quality run /models/gemma-4-26B-A4B-it --set gsm8k --path gsm8k/ --shots 8 --limit 200`
    """
    import contextlib

    from g4lab import records
    from g4lab.commands._progress import bar
    from g4lab.runners import sglang_server
    from g4lab.runners.evaluation import evaluate

    questions = _questions(set_, path, limit, by, seed)
    out = out or _new("quality") / "run.jsonl"
    with contextlib.ExitStack() as stack:
        target, label = model, ""
        if not model.startswith(("http://", "https://")):
            label = ", ".join([patches, *([f"draft {draft.name}"] if draft else []), *(args or [])])
            target = stack.enter_context(sglang_server(model, patches, args or [], draft=draft, device=device))
        advance = stack.enter_context(bar("questions"))
        found = evaluate(
            target, questions, shots=shots, by=by, max_new_tokens=max_new_tokens, concurrency=concurrency, api=api,
            seed=seed, label=label, path=out, progress=advance,
        )  # fmt: skip
    _frame(found.by_subject())
    cut = f", {found.cut} ended by --max-new-tokens" if found.cut and by == "generate" else ""
    print(f"accuracy {found.accuracy} on {len(found.rows)} questions; {found.unreadable} gave no clear answer{cut}")
    if found.errors:
        print(f"{len(found.errors)} questions failed and count as wrong; the first: {found.errors[0].error}")
    if found.acceptance.verify_steps:
        print(f"accepted drafts per verify {found.acceptance.per_verify:.3f}")
    print(f"every answer in {out}")
    conditions = {name: value for name, value in found.parameters.items() if name not in ("versions", "commit")}
    _record(records.new_record("quality.run", found.values(), conditions))


@app.command()
def ab(
    model: Annotated[str, typer.Argument(help="A model's name (`g4lab models`) or a checkpoint folder.")],
    args: ServerArgs = None,
    a: Annotated[str, typer.Option("--a", help="Patches of variant A.")] = "default",
    b: Annotated[str, typer.Option("--b", help="Patches of variant B.")] = "all",
    set_: Set = "probe",
    path: Local = None,
    limit: Limit = None,
    shots: Shots = 0,
    by: By = "generate",
    max_new_tokens: NewTokens = None,
    concurrency: Concurrency = 8,
    runs: Annotated[int, typer.Option(help="Of each variant; 2 give the noise.")] = 2,
    draft: Draft = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="float32 on a CPU")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Also test that B is not worse by this fraction.")] = None,
    device: Device = None,
    seed: Seed = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps runs and logs.", show_default="new, among the runs")
    ] = None,
) -> None:
    """Ask two variants the same questions, twice each in turns, and hold the change against the noise.

    Beside the paired test of the accuracy: log-probability drift, tokens routed otherwise, greedy tokens lost, and with
    MTP the accepted drafts per verification step. Adds a record.

    Examples:

    - `g4lab quality ab tiny-moe --a default --b default,router --limit 24 --by logprobs`
    - `g4lab quality ab /models/gemma-4-26B-A4B-it --draft /models/assistant --set gsm8k --path gsm8k/ --margin 0.02`
    """
    from g4lab import records
    from g4lab.runners.quality_ab import quality_ab

    found = quality_ab(
        model, a, b, _questions(set_, path, limit, by, seed), runs=runs, shots=shots, by=by,
        max_new_tokens=max_new_tokens, concurrency=concurrency, draft=draft,
        server={"args": args or [], "device": device, "dtype": dtype}, folder=folder or _new("quality"),
        progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    _frame(found.table())
    _frame(found.agreement())
    if found.drift:
        from rich.console import Console

        from g4lab.commands.bisect import drawn

        Console().print(drawn(found.drift))
    for verdict in found.verdicts(margin):
        print(verdict)
    for note in found.notes:
        print(f"note: {note}")
    _record(records.new_record("quality.ab", found.values(), found.parameters))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="File of a run (`g4lab quality run`).")],
    run_b: Annotated[Path, typer.Argument(help="File of another, of the same questions.")],
    again: Annotated[Path | None, typer.Option(help="A second run of A: the noise that A alone has.")] = None,
    margin: Annotated[float | None, typer.Option(help="Also test that B is not worse by this fraction.")] = None,
) -> None:
    """Compare two runs question by question: McNemar's test, wins by subject, and what could have been found.

    Example: `g4lab quality compare default.jsonl router.jsonl --again default-2.jsonl --margin 0.02`
    """
    from g4lab.quality import compare as compare_frames
    from g4lab.quality import noise_floor
    from g4lab.quality.evaluation import Evaluation, paired_frame

    a, b = Evaluation.read(run_a), Evaluation.read(run_b)
    found = compare_frames(paired_frame(a, b), run_a.stem, run_b.stem)
    _frame(found.subjects)
    test, subjects = found.mcnemar, found.subject_results()
    print(f"{run_a.stem} {found.accuracy_a}, {run_b.stem} {found.accuracy_b}")
    print(f"only {run_a.stem} right: {found.only_a}, only {run_b.stem}: {found.only_b}")
    print(f"McNemar chi2 {test.chi2:.2f} (corrected), p {test.p:.2g}, exact p {test.exact_p:.2g}")
    print(f"subjects won {subjects['win']}, lost {subjects['loss']}, tied {subjects['tie']}; p {found.subjects_p:.2g}")
    print(found.verdict(margin))
    if again:
        pair = paired_frame(a, Evaluation.read(again))
        print(noise_floor(pair["correct_a"], pair["correct_b"]))


@app.command()
def power(
    difference: Annotated[float, typer.Option(help="The claimed difference of accuracy, a fraction.")] = 0.02,
    accuracy: Annotated[float, typer.Option(help="Of the variant that it is held against.")] = 0.71,
    discordance: Annotated[
        float, typer.Option(help="Share of questions that just one variant answers right (see `ab`).")
    ] = 0.08,
    n: Annotated[int | None, typer.Option("-n", help="What could this many questions find?")] = None,
    alpha: Annotated[float, typer.Option(help="Two-sided level of the test.")] = 0.05,
) -> None:
    """How many questions a claimed difference needs, asked of both variants or of each its own.

    Example: `g4lab quality power --accuracy 0.71 --difference 0.02 -n 500`
    """
    from g4lab.quality.power import detectable_paired, power_paired, questions_paired, questions_unpaired

    paired = questions_paired(difference, discordance, alpha)
    print(f"a difference of {100 * difference:g} points with 80 % power at level {alpha:g} needs")
    print(f"  {paired:,} questions put to both variants, if {100 * discordance:g} % of the answers differ")
    print(
        f"  {questions_unpaired(accuracy, accuracy + difference, alpha):,} questions each, if every variant has its own"
    )
    if n is not None:
        chance, least = power_paired(n, difference, discordance, alpha), detectable_paired(n, discordance, alpha)
        print(
            f"{n:,} questions put to both find it with {100 * chance:.0f} % power; with 80 %: {100 * least:.2g} points"
        )


def _questions(name: str, path: Path | None, limit: int | None, by: str, seed: int):
    from g4lab.quality.question_sets import load_questions

    questions = load_questions(name, path)
    # The probe set has both kinds of question; a set of numbers alone stays, and is refused with the reason.
    questions = (by == "logprobs" and questions.with_choices()) or questions
    return questions.subset(limit, seed)


def _new(what: str) -> Path:
    import time

    from g4lab import records

    return records.runs_dir() / what / time.strftime("%Y%m%d-%H%M%S")


def _frame(frame) -> None:
    from rich.console import Console

    from g4lab.commands._table import frame_table

    Console().print(frame_table(frame.round(4)))


def _record(record) -> None:
    from g4lab import records

    print(f"record {record.id[:8]} in {records.append(record)}")
