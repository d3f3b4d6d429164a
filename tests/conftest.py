"""Shared test set-up: where kernels run, and which tests this machine can prove."""

from pathlib import Path

import pytest
from hypothesis import settings

from g4lab import env

env.interpret_without_gpu()  # before any test module imports triton
settings.register_profile("lab", deadline=None)  # a busy machine is no failure
settings.load_profile("lab")


def pytest_collection_modifyitems(items):
    if env.has_gpu():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU; this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """The folder of large real traces, in a folder `shared` beside the checkout; a test that needs it skips without."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
    if not folder.is_dir():
        pytest.skip("the large real traces are not beside this checkout")
    return folder
