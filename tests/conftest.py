"""Shared test set-up: where kernels run, and which tests this machine can prove."""

import importlib.metadata
import re
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from g4lab import env

env.interpret_without_gpu()  # before any test module imports triton
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("lab", deadline=None)  # a busy machine is no failure
settings.load_profile("lab")


def pytest_addoption(parser):
    parser.addoption("--locked", help="a lock file whose versions must be the ones under test")


def pytest_report_header():
    return ", ".join(f"{name} {version}" for name, version in env.versions().items() if version)


def pytest_configure(config):
    """A second environment that fell through to the first one's packages would prove nothing."""
    locked = config.getoption("--locked")
    for name, version in re.findall(r"^([\w-]+)={2,3}(\S+)", Path(locked).read_text(), re.MULTILINE) if locked else ():
        if importlib.metadata.version(name) != version:
            raise pytest.UsageError(f"{locked} names {name} {version}; {importlib.metadata.version(name)} is imported")


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
