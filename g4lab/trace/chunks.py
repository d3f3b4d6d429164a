"""The events of a Chrome trace file, chunk by chunk: little memory for any size, and repairs that are counted.

Two megabytes of text are cut between two events and decoded at once by msgspec, into structs that hold only the
fields the tables need. It was chosen by measurement on a trace of 216,092 events (53.7 MB of JSON): orjson took 0.81 s
and msgspec without a schema 0.95 s, both with a dict for every event; msgspec with this schema 0.11 s.

A cut is right when the text before it decodes: a cut inside a string or a nested object leaves something open. A chunk
that decodes at no cut is taken event by event with the standard library's parser, which also knows NaN and Infinity;
what is still no JSON is dropped and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from g4lab.errors import BadInput
from g4lab.trace.inflate import blocks
from g4lab.trace.model import Problem

CHUNK = 2 << 20
LONGEST = 64 << 20  # bytes of a header or of a single event
TRIES = 8  # cuts tried, 1, 2, 4, ... further back each time, before a chunk is taken event by event
JOINED = 8  # pieces that one event with nested objects may be in when it is taken so; fewer than 2**TRIES

Value = int | float | str | None


class Args(msgspec.Struct, gc=False):
    """The arguments of an event that the tables use; others are skipped unread."""

    correlation: Value = None
    stream: Value = None
    device: Value = None
    graph: Value = msgspec.field(default=None, name="graph id")
    node: Value = msgspec.field(default=None, name="graph node id")


class Event(msgspec.Struct, gc=False):
    """One event; ts and dur are NaN where the file has none."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: Value = None
    tid: Value = None
    ts: float = float("nan")
    dur: float = float("nan")
    args: Args | None = None


_EVENTS = msgspec.json.Decoder(list[Event])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LENIENT = json.JSONDecoder(strict=False)
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ChromeFile:
    """One file. Iterate for lists of events; `header`, `count` and `problems` are complete when that ends.

    Raises, while iterating:
        BadInput: the file is empty, no Chrome trace or without a readable event, or one event is longer than 64 MB.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self.header: dict[str, Any] = {}  # what the file says beside its events
        self.problems: list[Problem] = []
        self.count = 0
        self._blocks = blocks(file, lambda what: self.problems.append(Problem(what)))
        self._buffer = b""
        self._ended = self._closed = self._bare = False
        self._lost = 0

    def __iter__(self) -> Iterator[list[Event]]:
        self._find_events()
        while not self._closed:
            self._fill(len(self._buffer) + CHUNK)
            events = self._last() if self._ended else self._next()
            self.count += len(events)
            yield events
        if not self.count:
            raise BadInput(f"{self.name}: expected a Chrome trace, found no event in it")
        if self._lost:
            self.problems.append(Problem("pieces of text that are no event", self._lost))

    def _fill(self, size: int) -> None:
        """Read until the buffer holds `size` bytes or the file ends."""
        parts, have = [self._buffer], len(self._buffer)
        while have < size and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            parts.append(block)
            have += len(block)
        self._buffer = b"".join(parts)

    def _find_events(self) -> None:
        """Leave the buffer at the first event."""
        self._fill(CHUNK)
        text = self._buffer.removeprefix(b"\xef\xbb\xbf").lstrip()
        if not text:
            raise BadInput(f"{self.name}: expected a profiler trace, found an empty file")
        if text.startswith(b"["):  # the format's array form, which need not be closed
            self._buffer, self._bare = text[1:], True
            return
        if not text.startswith(b"{"):
            raise BadInput(f"{self.name}: expected a Chrome trace (JSON), found {text[:16]!r}")
        self._buffer, seen = text, 0
        while True:
            for found in _START.finditer(self._buffer, seen):
                header = _header(self._buffer[: found.start()])
                if header is not None:
                    self.header, self._buffer = header, self._buffer[found.end() :]
                    return
            if self._ended or len(self._buffer) > LONGEST:
                raise BadInput(f"{self.name}: expected a Chrome trace, found JSON without a list traceEvents")
            seen = max(0, len(self._buffer) - 64)
            self._fill(len(self._buffer) + CHUNK)

    def _next(self) -> list[Event]:
        """The events before the buffer's last good cut; none where the buffer must grow first."""
        end = len(self._buffer)
        for attempt in range(TRIES):
            for _ in range(2**attempt):  # an event of many nested objects is soon behind
                end = _cut(self._buffer, end)
            if end < 0:
                break
            try:
                events = _EVENTS.decode(b"[" + self._buffer[: end + 1] + b"]")
            except _UNREADABLE:
                continue
            self._buffer = self._buffer[end + 1 :].lstrip()[1:]  # without the comma
            return events
        if end >= 0:
            return self._piecewise()
        if len(self._buffer) > LONGEST:
            raise BadInput(f"{self.name}: expected a Chrome trace, found {LONGEST >> 20} MB without an event's end")
        return []

    def _last(self) -> list[Event]:
        """The events at the end of the file, and what the file says behind them."""
        for end in (b"}", b"]}") if self._bare else (b"",):
            try:
                rest = _OBJECT.decode(b'{"traceEvents":[' + self._buffer + end)
                events = _EVENTS.decode(rest.pop("traceEvents"))
                self.header |= {key: msgspec.json.decode(raw) for key, raw in rest.items()}
            except _UNREADABLE:
                continue
            self._closed = True
            return events
        events = self._piecewise()
        if not self._closed:
            self._closed = True
            if not self._bare:
                self.problems.append(Problem("the list of events has no end: the file was cut"))
        return events

    def _piecewise(self) -> list[Event]:
        """The buffer's events one at a time; before the end of the file the last few pieces stay in the buffer."""
        text = self._buffer
        cuts = [0, *(found.end() for found in _BETWEEN.finditer(text)), len(text)]
        last = len(cuts) - 1 - (0 if self._ended else JOINED)
        events: list[Event] = []
        index = 0
        while index < last and not self._closed:
            for end in cuts[index + 1 : index + 1 + JOINED]:
                event, rest = _first_object(text[cuts[index] : end])
                if event is not None and (rest in ("", ",") or rest.startswith("]")):
                    events += self._usable(event)
                    index = cuts.index(end, index)
                    if rest.startswith("]"):
                        self._close(rest.encode() + text[end:])
                    break
            else:
                self._lost += not text[cuts[index] : cuts[index + 1]].isspace()
                index += 1
        self._buffer = text[cuts[index] :]
        return events

    def _usable(self, event: dict) -> list[Event]:
        if not isinstance(event.get("args", {}), dict):
            event = event | {"args": None}
        try:
            return [msgspec.convert(event, Event, strict=False)]
        except (msgspec.ValidationError, OverflowError):
            self._lost += 1
            return []

    def _close(self, rest: bytes) -> None:
        """Read what follows the list of events; `rest` starts with the list's closing bracket."""
        rest += b"".join(self._blocks)
        self._ended = self._closed = True
        try:
            self.header |= _LENIENT.decode('{"traceEvents":[' + rest.decode("utf-8", "replace"))
            del self.header["traceEvents"]
        except (ValueError, RecursionError):
            if not self._bare or rest.strip() != b"]":
                self.problems.append(Problem("the text behind the list of events is no JSON"))


def _header(text: bytes) -> dict[str, Any] | None:
    """What stands before the list of events, or None where `text` ends inside a string or a nested object."""
    try:
        header = _LENIENT.decode(text.decode("utf-8", "replace") + '"":0}')
    except (ValueError, RecursionError):
        return None
    del header[""]
    return header


def _cut(text: bytes, end: int) -> int:
    """Where the last object that another object follows has its closing brace, before `end`; -1 for nowhere."""
    while end >= 0 and (end := text.rfind(b"}", 0, end)) >= 0:
        after = text[end + 1 : end + 100].lstrip()
        if after.startswith(b",") and after[1:].lstrip().startswith(b"{"):
            return end
    return -1


def _first_object(piece: bytes) -> tuple[dict | None, str]:
    """The object at the start of `piece` and the text behind it; None where there is none."""
    text = piece.decode("utf-8", "replace").strip()
    try:
        event, end = _LENIENT.raw_decode(text)
    except (ValueError, RecursionError):
        return None, ""
    return (event, text[end:].strip()) if isinstance(event, dict) else (None, "")
