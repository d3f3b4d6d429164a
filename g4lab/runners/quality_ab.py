"""Quality A/B: two variants of a server answer the same questions, twice each, and the same prompts token by token.

Two runs of each variant give the noise that the change is held against, as in pyc96/sglang#1. Beside the accuracy stand
signals that need far fewer questions: how far the log-probabilities drift, which tokens are routed otherwise, where
greedy answers part; and, with MTP, the drafts that are accepted. Acceptance alone proves nothing: draft and target read
the same patched layers, and may agree on what is worse. SGLang PR #26588 took two fusions back that had cost GSM8K
points while the accept length still looked healthy, at 4.48.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4lab import env
from g4lab.errors import bad
from g4lab.patches import parse
from g4lab.quality.bisection import Answer, Bisection, Row, judge, measure
from g4lab.quality.evaluation import Evaluation, paired_frame, same_answers
from g4lab.quality.noise import Decomposition, decompose
from g4lab.quality.paired import Paired, compare
from g4lab.quality.questions import QuestionSet
from g4lab.quality.tokens import random_prompts
from g4lab.runners.answers import ROUTING_ARGS, ask, keep
from g4lab.runners.bisection import NEW_TOKENS, PROMPT_LENS, TOP, WHOLE_VOCABULARY, served_config
from g4lab.runners.evaluation import evaluate
from g4lab.runners.openai_api import Api
from g4lab.runners.server import Server, sglang_server
from g4lab.runners.server_command import choose_device

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class QualityAB:
    """What `quality_ab` found. runs: "a1", "a2", ..., "b1", ...: the evaluations. drift: rows of b1 and of the noise
    against a1, None where it was not asked for. silent: patches of one side that never ran."""

    model: str
    a: str
    b: str
    runs: Mapping[str, Evaluation]
    drift: Bisection | None = None
    silent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paired(self) -> Paired:
        """The first run of each variant, question by question."""
        return compare(paired_frame(self.runs["a1"], self.runs["b1"]), self.a, self.b)

    def frame(self) -> pd.DataFrame:
        """One row for each question that every run answered: question (id), subject, and whether each run (a1, a2, b1,
        b2) got it right."""
        import pandas as pd

        answered = {name: {r.id: r.correct for r in run.rows if not r.error} for name, run in self.runs.items()}
        rows = [
            {"question": row.id, "subject": row.subject} | {name: correct[row.id] for name, correct in answered.items()}
            for row in self.runs["a1"].rows
            if all(row.id in correct for correct in answered.values())
        ]
        return pd.DataFrame(rows, columns=["question", "subject", *self.runs])

    def decomposition(self) -> Decomposition | None:
        """Noise and change apart, from the first two runs of each variant; None of fewer."""
        if "a2" not in self.runs:
            return None
        frame = self.frame()
        return decompose([frame["a1"], frame["a2"]], [frame["b1"], frame["b2"]])

    def table(self) -> pd.DataFrame:
        """One row a run: run, patches, questions, accuracy with its interval, unreadable answers, errors, and accepted
        drafts per verification step (None without speculative decoding)."""
        import pandas as pd

        rows = []
        for name, run in self.runs.items():
            patches, drafts = self.a if name[0] == "a" else self.b, run.acceptance.per_verify
            rows.append((name, patches, len(run.rows), *run.accuracy[:3], run.unreadable, len(run.errors), drafts))
        names = [
            "run",
            "patches",
            "questions",
            "accuracy",
            "low",
            "high",
            "unreadable",
            "errors",
            "accepted_per_verify",
        ]
        return pd.DataFrame(rows, columns=names)

    def agreement(self) -> pd.DataFrame:
        """One row a pair of runs, the noise first: pair, questions, same_answer and same_tokens (fractions), only_first
        and only_second (questions that just one got right)."""
        import pandas as pd

        rows = []
        for first, second in _pairs(self.runs):
            x, y = self.runs[first], self.runs[second]
            n, answer, tokens = same_answers(x.rows, y.rows)
            found = compare(paired_frame(x, y))
            rows.append((f"{first} {second}", n, answer / n, tokens / n, found.only_a, found.only_b))
        names = ["pair", "questions", "same_answer", "same_tokens", "only_first", "only_second"]
        return pd.DataFrame(rows, columns=names)

    def verdicts(self, margin: float | None = None) -> list[str]:
        """Sentences: accuracy, noise and change, drift, drafts."""
        said = [self.paired.verdict(margin)]
        if (parts := self.decomposition()) is not None:
            said.append(parts.verdict())
        if self.drift is not None:
            changed = next(row for row in self.drift.rows if not row.noise)
            beyond = ", ".join(changed.beyond)
            said.append(f"beyond the noise of A in {beyond}" if beyond else "no drift beyond the noise of A")
        a, b = (self.runs[name].acceptance.per_verify for name in ("a1", "b1"))
        if a is not None and b is not None:
            said.append(f"accepted drafts per verify {a:.3f} and {b:.3f}; that is speed, and no proof of quality")
        return said

    def values(self) -> dict[str, Any]:
        """For a record: every run, every pair, the statistics, the drift, the notes."""
        test = self.paired
        return {
            "runs": {name: run.values() for name, run in self.runs.items()},
            "pairs": self.agreement().to_dict("records"),
            "paired": {"n": test.n, "both": test.both, **test.mcnemar._asdict(), "difference": list(test.difference)},
            "decomposition": found._asdict() if (found := self.decomposition()) else None,
            "drift": self.drift.values() if self.drift else None,
            "verdicts": self.verdicts(),
            "silent": list(self.silent),
            "notes": list(self.notes),
        }


def quality_ab(
    model: str | Path,
    a: str,
    b: str,
    questions: QuestionSet,
    *,
    runs: int = 2,
    shots: int = 0,
    by: str = "generate",
    max_new_tokens: int | None = None,
    concurrency: int = 8,
    draft: str | Path | None = None,
    prompt_lens: Sequence[int] = PROMPT_LENS,
    new_tokens: int = NEW_TOKENS,
    fresh: bool | None = None,
    seed: int = 1,
    server: Mapping[str, Any] | None = None,
    server_a: Mapping[str, Any] | None = None,
    server_b: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> QualityAB:
    """Serve `model` with patches `a` and with patches `b` and put the same questions to both, in turns A B B A ...

    Every run starts with an empty prefix cache.

    Args:
        runs: of each variant; 2 give the noise.
        shots, by, max_new_tokens, concurrency: as in evaluate.
        draft: folder of an MTP assistant, for both sides.
        prompt_lens: of the random prompts that drift, routing and greedy answers are measured on, with 2 runs or more;
            none leaves it out.
        new_tokens: greedy tokens after each of those prompts.
        fresh: a new server for every run; default on a GPU, where two do not fit. Otherwise one process a side, and the
            noise does not hold what differs from one process to the next.
        server: more arguments for sglang_server. server_a, server_b: of one side alone ({"draft": folder} on one side
            compares MTP with none).
        folder: keeps the runs (a1.jsonl, ...), the drift answers and the logs; given again, no answered question is
            asked again. Default a new temporary one.

    Raises:
        BadInput: an argument that cannot work. Unavailable: a server failed; the folder keeps what was answered.
    """
    if runs < 1:
        raise bad("runs", runs, "at least 1")
    patches = {"a": a, "b": b}
    names = {side: parse(text) for side, text in patches.items()}
    both = {"draft": draft, **(server or {})}
    given = {"a": {**both, **(server_a or {})}, "b": {**both, **(server_b or {})}}
    fresh = choose_device(both.get("device")) == "cuda" if fresh is None else fresh
    folder = Path(folder or tempfile.mkdtemp(prefix="g4lab-quality-"))
    configs = [served_config(model, given[side], folder) for side in "ab"]
    moe = prompt_lens and all(config.get("enable_moe_block") for config in configs)
    layers = configs[0]["num_hidden_layers"] if moe else None
    prompts = random_prompts(prompt_lens, configs[0]["vocab_size"], seed)
    found: dict[str, Evaluation] = {}
    answers: dict[str, list[Answer]] = {}
    calls: dict[str, dict[str, int]] = {"a": {}, "b": {}}
    with contextlib.ExitStack() as kept:
        alive: dict[str, Server] = {}
        for number in range(1, runs + 1):
            for side in ("ab", "ba")[(number + 1) % 2]:
                name = f"{side}{number}"
                with contextlib.ExitStack() as once:
                    if side not in alive or fresh:
                        progress(f"starting {side} ({', '.join(names[side]) or 'no patches'})")
                        how = _arguments(patches[side], given[side], layers is not None, kept=not fresh)
                        started = sglang_server(model, **how, log_dir=folder / f"server-{name if fresh else side}")
                        alive[side] = (once if fresh else kept).enter_context(started)
                    running = alive[side]
                    Api(running).flush_cache()
                    found[name] = evaluate(
                        running, questions, shots=shots, by=by, max_new_tokens=max_new_tokens, concurrency=concurrency,
                        label=_label(patches[side], given[side]), path=folder / f"{name}.jsonl",
                    )  # fmt: skip
                    progress(f"{name}: {found[name].accuracy}")
                    if prompt_lens:
                        answers[name] = _probe(running, prompts, new_tokens, layers)
                        keep(answers[name], folder / f"{name}.npz")
                    calls[side] = running.counters()
    ordered = {name: found[name] for side in "ab" for name in (f"{side}{i + 1}" for i in range(runs))}
    silent = tuple(
        name
        for side, other in ("ab", "ba")
        for name in names[side]
        if name not in names[other] and not calls[side].get(name)
    )
    parameters = {"a": a, "b": b, "model": Path(model).name, "set": questions.name, "digest": questions.digest,
                  "shots": shots, "by": by, "fresh": fresh, "concurrency": concurrency,
                  "sides": {side: _label(patches[side], given[side]) for side in "ab"}}  # fmt: skip
    changed = [name for name in (*names["b"], *names["a"]) if (name in names["a"]) != (name in names["b"])]
    drift = _drift(answers, configs[0]["vocab_size"], changed, parameters) if "a2" in answers else None
    return QualityAB(str(parameters["model"]), a, b, ordered, drift, silent, tuple(_notes(fresh, silent)), parameters)


def _arguments(patches: str, given: Mapping[str, Any], routing: bool, kept: bool) -> dict[str, Any]:
    """For sglang_server: `given`, and what tells the chosen experts where the drift is asked for."""
    args = [*given.get("args", ()), *(["--sleep-on-idle"] if kept else ()), *(ROUTING_ARGS if routing else ())]
    return {**given, "patches": ",".join([patches, *(["routed_experts"] if routing else [])]), "args": args}


def _probe(server: Server, prompts: Sequence[Sequence[int]], new_tokens: int, layers: int | None) -> list[Answer]:
    """Answers to prompts; no slot of an earlier one may be reused, so the cache is emptied before each."""
    vocab = server.vocab_size
    top = vocab if vocab <= WHOLE_VOCABULARY else TOP
    answers = []
    for prompt in prompts:
        Api(server).flush_cache()
        answers.append(ask(server, prompt, new_tokens, top, layers))
    return answers


def _drift(answers: Mapping[str, list[Answer]], vocab: int, changed: Sequence[str], parameters: Mapping) -> Bisection:
    base = answers["a1"]
    rows: list[Row] = [
        measure(base, answers[name], vocab, noise=True) for name in answers if name[0] == "a" and name != "a1"
    ]
    rows.append(measure(base, answers["b1"], vocab, changed or ("B",)))
    return judge(rows, parameters["model"], (), parameters)


def _label(patches: str, given: Mapping[str, Any]) -> str:
    said = {name: Path(value).name if name == "draft" else value for name, value in given.items() if value is not None}
    return f"{patches} {json.dumps(said, sort_keys=True, default=str)}" if said else patches


def _pairs(runs: Mapping[str, Evaluation]) -> list[tuple[str, str]]:
    again = [(f"{side}1", f"{side}{i}") for side in "ab" for i in range(2, len(runs) // 2 + 1)]
    return [*again, ("a1", "b1")]


def _notes(fresh: bool, silent: Sequence[str]) -> list[str]:
    notes = [f"{name} never ran" for name in silent]
    if not fresh:
        notes.append("one server process a side: the noise does not hold what differs between processes")
    if not env.has_gpu():
        notes.append("on a CPU: rounding as there, not as on a GPU")
    return notes
