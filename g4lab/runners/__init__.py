"""Runs of whole models: transformers in this process, SGLang's real server, and SGLang's benchmark client."""

import importlib

_HOME = {
    "BenchResult": "results",
    "Comparison": "comparison",
    "RunResult": "generate",
    "Server": "server",
    "ab": "interleaved",
    "bench_serving": "client",
    "bisect": "bisection",
    "load_model": "models",
    "parse_bench": "parse",
    "profile_server": "server_profile",
    "profile_transformers": "profiling",
    "sglang_server": "server",
    "transformers_run": "generate",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
