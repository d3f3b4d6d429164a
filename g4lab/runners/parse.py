"""Reads what `sglang.bench_serving` and `vllm bench serve` write, as text, JSON or JSON lines, of several versions.

Names differ by version and client ("Max reqeuest concurrency", "request_goodput:", Total Token / Total token,
Inter-token / Inter-Token; "inf" as text or bare Infinity): facts gathered from the clients' public outputs.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g4lab.errors import BadInput, bad
from g4lab.runners.results import MEASURED, BenchResult, doubts

SGLANG, VLLM = "sglang.bench_serving", "vllm bench serve"
_NAMES = {  # name in a text or a JSON key, lower case, "-" and "_" as spaces, units left out -> field
    "backend": "backend",
    "dataset name": "dataset",
    "model id": "model",
    "num prompts": "num_prompts",
    "traffic request rate": "request_rate_per_s",
    "request rate configured": "request_rate_per_s",
    "request rate": "request_rate_per_s",
    "burstiness factor": "burstiness",
    "burstiness": "burstiness",
    "max request concurrency": "max_concurrency",
    "max reqeuest concurrency": "max_concurrency",
    "maximum request concurrency": "max_concurrency",
    "max concurrency": "max_concurrency",
    "random input len": "input_len",
    "random output len": "output_len",
    "successful requests": "completed",
    "completed": "completed",
    "failed requests": "failed",
    "failed": "failed",
    "benchmark duration": "duration_s",
    "duration": "duration_s",
    "total input tokens": "input_tokens",
    "total generated tokens": "output_tokens",
    "total output tokens": "output_tokens",
    "total generated tokens (retokenized)": "output_tokens_retokenized",
    "total output tokens retokenized": "output_tokens_retokenized",
    "request throughput": "requests_per_s",
    "request goodput": "goodput_requests_per_s",
    "input token throughput": "input_tokens_per_s",
    "input throughput": "input_tokens_per_s",
    "output token throughput": "output_tokens_per_s",
    "output throughput": "output_tokens_per_s",
    "peak output token throughput": "peak_output_tokens_per_s",
    "max output tokens per s": "peak_output_tokens_per_s",
    "total token throughput": "total_tokens_per_s",
    "total throughput": "total_tokens_per_s",
    "concurrency": "concurrency",
    "peak concurrent requests": "peak_concurrency",
    "max concurrent requests": "peak_concurrency",
    "accept length": "accept_length",
    "acceptance length": "accept_length",
    "spec decode acceptance length": "accept_length",
    "acceptance rate": "accept_rate_percent",
    "spec decode acceptance rate": "accept_rate_percent",
}
_LATENCY = re.compile(r"(mean|median|std|max|p\d+(?:\.\d+)?) (e2e latency|e2el|ttft|tpot|itl)(?: ms)?")
_UNIT = re.compile(r" \((?:ms|s|%|rps|req/s|tok/s)\)$")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_HEADING = re.compile(r"^=+ Serving Benchmark Result =+$")
_LINE = re.compile(r"^\s*(?P<name>[A-Za-z][^:]*?(?:\([^)]*\))?)\s*:\s+(?P<value>\S.*?)\s*$")
_UNSET = ("", "not set", "none", "null")


def parse_bench(source: Path | str) -> list[BenchResult]:
    """Every result in a file, or in a text that has a line break or begins with "{".

    Each result says which of the measured fields it lacks (`missing`), what speaks against it (`warnings`), and keeps
    what was read as it stood (`raw`). Where a version left out total_tokens_per_s, it is the sum of input and output.

    Raises:
        BadInput: no such file, an empty or binary file, JSON that is cut, or nothing that is a benchmark's result.
    """
    is_text = isinstance(source, str) and ("\n" in source or source.lstrip().startswith(("{", "[")))
    name = "text" if is_text else str(source)
    text = source if is_text else _read(Path(source))
    if not text.strip():
        raise bad("source", name, "a benchmark's output; this is empty")
    results = list(_from_json(text, name) if text.lstrip()[0] in "{[" else _from_text(text, name))
    if not results:
        raise bad("source", name, "the output of sglang.bench_serving or vllm bench serve; no result is in it")
    return results


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise bad("source", str(path), f"a file that can be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise bad("source", str(path), "UTF-8 text; this is binary")
    return text


def _from_json(text: str, name: str) -> Iterator[BenchResult]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            found, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
            raise BadInput(f"source: {name}: JSON that is cut or broken: {reason}") from None
        at += len(text[at:]) - len(text[at:].lstrip())
        for raw in found if isinstance(found, list) else [found]:
            if isinstance(raw, dict) and "completed" in raw:
                yield _result(raw, _client(raw), [])


def _from_text(text: str, name: str) -> Iterator[BenchResult]:
    """Blocks begin at their heading; lines before the first heading (vLLM's settings) belong to the first block."""
    raw: dict[str, Any] = {}
    notes: list[str] = []
    inside = ended = False
    for line in _ANSI.sub("", text).splitlines():
        line = line.strip()
        if _HEADING.match(line):
            if inside:
                yield _result(raw, _client(raw), notes if ended else [*notes, _CUT])
                raw, notes = {}, []
            inside, ended = True, False
        elif inside and re.fullmatch("=+", line):
            ended = True
        elif line.startswith("{"):
            yield from _from_json(line, name)
        elif match := _LINE.match(line):
            label, value = match["name"], match["value"]
            if inside and _field(label) and raw.get(label, value) != value:
                notes.append(f"{label!r} stands there twice, as {raw[label]!r} and {value!r}; the first is kept")
            raw.setdefault(label, value)
    if inside:
        yield _result(raw, _client(raw), notes if ended else [*notes, _CUT])


_CUT = "the text ends before the closing line: it is cut"


def _result(raw: dict[str, Any], client: str, notes: list[str]) -> BenchResult:
    values: dict[str, Any] = {}
    for key, value in raw.items():
        field = _field(key)
        if field is None or field in values:
            continue
        try:
            values[field] = _value(field, value)
        except (ValueError, TypeError, OverflowError):
            notes = [*notes, f"{key} is {value!r}, not a number"]
    values.setdefault("total_tokens_per_s", _total(values))
    missing = [field for field in MEASURED if values.get(field) is None]
    return BenchResult(
        client=client,
        engine=_engine(raw, client, values.get("backend")),
        **values,
        missing=missing,
        warnings=[*notes, *doubts(values)],
        raw=raw,
    )


def _field(key: str) -> str | None:
    name = _UNIT.sub("", key.strip().rstrip(":").lower()).replace("-", " ").replace("_", " ")
    if latency := _LATENCY.fullmatch(name):
        statistic, kind = latency.groups()
        field = f"{statistic}_{kind.split()[0].removesuffix('l') if kind.startswith('e2e') else kind}_ms"
        return field if field in BenchResult.model_fields else None
    return _NAMES.get(name)


def _value(field: str, value: Any) -> Any:
    kind = BenchResult.model_fields[field].annotation
    if value is None or (isinstance(value, str) and value.strip().lower() in _UNSET):
        return None
    if kind == str | None:
        return str(value)
    if isinstance(value, str):
        value = value.split(" (")[0].rstrip("%").strip()  # "1.0 (Poisson process)"
    number = float(value)
    if math.isnan(number):
        raise ValueError
    if kind == int | None:
        if number != int(number):
            raise ValueError
        return int(number)
    return number


def _client(raw: dict[str, Any]) -> str:
    """SGLang's client names its backend in the text, and its dataset lengths or retokenised count in the JSON."""
    sglang = ("Backend", "random_range_ratio", "total_output_tokens_retokenized", "sharegpt_output_len")
    return SGLANG if any(key in raw for key in sglang) else VLLM


def _engine(raw: dict[str, Any], client: str, backend: str | None) -> str | None:
    if client == SGLANG:  # its "sglang-oai" and "vllm" backends talk to any OpenAI-compatible server
        return "sglang" if backend in ("sglang", "sglang-native") or raw.get("server_info") else None
    return "vllm" if backend in ("vllm", None) else None


def _total(values: dict[str, Any]) -> float | None:
    parts = values.get("input_tokens_per_s"), values.get("output_tokens_per_s")
    return None if None in parts else sum(parts)
