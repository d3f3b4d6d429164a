"""Run by test_serving_patches.py in a server's environment: SGLang's own resolution of its arguments, case by case.

python -m tests.server_arguments CASES      CASES: JSON of {name: {"args": {...}, "env": {...}}}; prints one JSON line.
"""

import json
import os
import sys

from sglang.srt.arg_groups.overrides import resolution_result
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from g4lab.gemma4.checkpoint import sglang_overrides
from g4lab.patches import counting

FIELDS = ("swa_full_tokens_ratio", "mem_fraction_static", "language_model_only")


def resolved(args: dict, env: dict) -> dict:
    os.environ.update(env)
    try:
        overrides = json.dumps(sglang_overrides(args["model_path"]))
        given = ServerArgs(device="cpu", attention_backend="triton", json_model_override_args=overrides, **args)
        given.resolve_once()
        return {field: resolution_result(given, field) for field in FIELDS} | counting._notes.pop("swa_ratio", {})
    except ValueError as error:
        return {"error": str(error)}
    finally:
        for name in env:
            del os.environ[name]


if __name__ == "__main__":
    load_plugins()
    print(json.dumps({name: resolved(**case) for name, case in json.loads(sys.argv[1]).items()}), flush=True)
