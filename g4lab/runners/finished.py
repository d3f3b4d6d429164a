"""What a server says of every request that it finished: SGLang writes each one's meta_info to a file when told to.

A benchmark's client drops it, and the server's own averages cover its lifetime, so a visit's drafts, cached tokens and
retractions can be counted from here alone.
"""

import json
import time
from pathlib import Path
from typing import Any

from g4lab.errors import Unavailable

_WAIT_S = 5.0  # SGLang writes from a thread of its own while the client already has the answer


def export_args(folder: Path | str) -> list[str]:
    """The flags with which a server writes to `folder`, which should be its own."""
    return ["--export-metrics-to-file", "--export-metrics-to-file-dir", str(folder)]


def finished(folder: Path | str, at_least: int = 0) -> list[dict[str, Any]]:
    """The meta_info of every finished request, in the order in which they finished; health checks are not among them.

    Raises:
        Unavailable: fewer than `at_least` within seconds.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        text = "".join(path.read_text() for path in sorted(Path(folder).glob("sglang-request-metrics-*.log")))
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if len(lines) >= at_least:
            break
        if time.monotonic() > deadline:
            raise Unavailable(f"the SGLang server has written {len(lines)} of {at_least} finished requests to {folder}")
        time.sleep(0.05)
    requests = [json.loads(line) for line in lines]
    for request in requests:
        del request["request_parameters"]  # holds the prompt
    return requests
