"""Where questions come from: MMLU and GSM8K (local files or the `datasets` package), and the probe set in data/eval.

MMLU: Hendrycks et al., "Measuring Massive Multitask Language Understanding" (2021). GSM8K: Cobbe et al., "Training
Verifiers to Solve Math Word Problems" (2021). Neither is shipped here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.quality.questions import Question, QuestionSet, identified, letter
from g4lab.quality.word_problems import word_problems

_ANNOTATION = re.compile(r"<<.*?>>")  # GSM8K's calculator marks


def load_questions(name: str, path: Path | str | None = None) -> QuestionSet:
    """The set called "probe", "mmlu" or "gsm8k"; `path`: local files of the latter two.

    Raises:
        BadInput: another name, or a path that does not hold the set. Unavailable: there is no path, and the `datasets`
            package is not installed or cannot reach the set.
    """
    if name not in LOADERS:
        raise bad("set", name, "one of " + ", ".join(LOADERS))
    if name == "probe":
        if path is not None:
            raise bad("path", str(path), "none for the probe set, which stands in data/eval")
        return probe()
    return LOADERS[name](path)


def probe() -> QuestionSet:
    """Questions of this project's own: 120 with choices from data/eval and 40 generated word problems.

    They probe the pipeline and gross damage to a model; they are too few and too easy to be a benchmark.
    """
    folder = env.data_dir() / "eval"
    parts = []
    for file, count, seed in (("probe.jsonl", 40, 0), ("examples.jsonl", 8, 1)):
        choices = identified(map(_probe_question, _json_lines(folder / file)))
        parts.append((*choices, *word_problems(count, seed)))
    asked = {question.id for question in parts[0]}
    examples = tuple(example for example in parts[1] if example.id not in asked)
    return QuestionSet("probe", parts[0], examples, "data/eval and word_problems.py of this repository")


def mmlu(path: Path | str | None = None) -> QuestionSet:
    """MMLU's test questions, with its dev questions as examples.

    path: the folder of the original files (test/SUBJECT_test.csv, dev/SUBJECT_dev.csv), a folder with *test* and *dev*
    files in Parquet or JSON lines (question, subject, choices, answer as an index), or one such file without examples.
    None asks the `datasets` package for cais/mmlu.
    """
    if path is None:
        return _from_hub("mmlu", "cais/mmlu", "all", ("test", "dev"), _mmlu_question)
    path = _existing(path)
    if path.is_dir() and (path / "test").is_dir():
        parts = [list(_mmlu_csv(path / part)) for part in ("test", "dev")]
        if not parts[0]:
            raise bad("path", str(path), "a folder with test/*.csv")
        return QuestionSet("mmlu", identified(parts[0]), identified(parts[1]), "local CSV files")
    return _from_files("mmlu", path, ("test", "dev"), _mmlu_question)


def gsm8k(path: Path | str | None = None) -> QuestionSet:
    """GSM8K's test questions, with its training questions as examples.

    path: a folder with *test* and *train* files in JSON lines or Parquet (question, and an answer that ends with
    "#### 42"), or one such file without examples. None asks the `datasets` package for openai/gsm8k.
    """
    if path is None:
        return _from_hub("gsm8k", "openai/gsm8k", "main", ("test", "train"), _gsm8k_question)
    return _from_files("gsm8k", _existing(path), ("test", "train"), _gsm8k_question)


LOADERS: dict[str, Callable[..., QuestionSet]] = {"probe": probe, "mmlu": mmlu, "gsm8k": gsm8k}


def _probe_question(row: Mapping[str, Any]) -> Question:
    return Question("", row["subject"], row["question"], tuple(row["choices"]), row["answer"])


def _mmlu_question(row: Mapping[str, Any]) -> Question:
    choices = tuple(map(str, row["choices"]))
    return Question("", row["subject"], row["question"].strip(), choices, letter(int(row["answer"]), choices))


def _gsm8k_question(row: Mapping[str, Any]) -> Question:
    worked, found, number = row["answer"].rpartition("####")
    if not found:
        raise bad("answer", row["answer"][-40:], 'a solution that ends with "#### " and a number')
    steps = " ".join(_ANNOTATION.sub("", worked).split())
    return Question("", "gsm8k", row["question"].strip(), (), number.strip().replace(",", ""), steps)


def _mmlu_csv(folder: Path) -> Iterator[Question]:
    import pandas as pd

    for file in sorted(folder.glob("*.csv")):
        # As text, nothing missing: "None" and "NA" are answers here, and "1e3" is not 1000.0.
        table = pd.read_csv(file, header=None, dtype=str, keep_default_na=False)
        if table.shape[1] != 6:
            raise bad("path", str(file), f"6 columns: question, four choices, answer (it has {table.shape[1]})")
        subject = re.sub(r"_(test|dev|val)$", "", file.stem)
        for text, *choices, answer in table.itertuples(index=False):
            yield Question("", subject, text.strip(), tuple(choices), answer.strip())


def _from_files(name: str, path: Path, parts: tuple[str, str], read: Callable[[Mapping], Question]) -> QuestionSet:
    if path.is_file():
        return QuestionSet(name, identified(map(read, _rows(path))), (), "a local file")
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".parquet", ".jsonl")]
    asked, examples = ([file for file in files if part in file.stem] for part in parts)
    if not asked:
        raise bad("path", str(path), f"a folder with *{parts[0]}*.parquet or .jsonl files, or one such file")
    made = [identified(read(row) for file in found for row in _rows(file)) for found in (asked, examples)]
    return QuestionSet(name, *made, "local files")


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    if file.suffix != ".parquet":
        return _json_lines(file)
    import pandas as pd

    return pd.read_parquet(file).to_dict("records")


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise bad("path", str(file), f"JSON lines ({error})") from None


def _from_hub(name: str, repo: str, config: str, parts: tuple[str, str], read: Callable) -> QuestionSet:
    try:
        import datasets
    except ImportError:
        raise Unavailable(f"{name}: give a folder of local files, or install the package `datasets`") from None
    try:
        found = [datasets.load_dataset(repo, config, split=part) for part in parts]
    except Exception as error:  # whatever a network, a cache or a moved repository brings
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"{name}: `datasets` cannot load {repo} ({reason}); give a folder of local files") from error
    return QuestionSet(name, *(identified(map(read, part)) for part in found), f"{repo}, by `datasets`")


def _existing(path: Path | str) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise bad("path", str(path), "a file or folder that exists")
    return path
