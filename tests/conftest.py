"""Shared test set-up: where kernels run, and which tests this machine can prove."""

import os

from g4lab import env

# Before anything imports triton: without a GPU every kernel of this process runs in the interpreter.
if not env.has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest


def pytest_collection_modifyitems(items):
    if env.has_gpu():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU; this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
