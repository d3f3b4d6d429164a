"""What a process says of itself, and the one way files are written."""

import subprocess
import sys

import pytest

from g4lab import env
from g4lab.errors import Unavailable


def test_machine_matches_the_system():
    assert env.machine()["cores"] == int(subprocess.check_output(["nproc"]))
    assert env.machine()["ram_gb"] > 0
    assert env.machine_name() == env.machine_name().lower().replace(" ", "-")


def test_versions_are_the_installed_ones():
    import torch

    assert torch.__version__.split("+")[0] == env.versions()["torch"]
    assert set(env.versions()) == set(env.PACKAGES)


def test_commit_is_this_checkouts():
    sha, dirty = env.commit()
    assert sha == subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert isinstance(dirty, bool)


def test_interpreting_is_decided_before_triton_is_imported(monkeypatch):
    if env.has_gpu():
        pytest.skip("a GPU machine compiles")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(Unavailable, match="restart"):
        env.interpret_without_gpu()
    monkeypatch.delitem(sys.modules, "triton")
    env.interpret_without_gpu()
    assert env.interpreting()


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.6.0", "3.0", False), ("3.7.1", "2.4.6", True),
     ("3.10.0", "2.10.1", True), (None, "2.4.6", True)],
)  # fmt: skip
def test_an_interpreter_that_numpy_breaks_is_named_before_it_runs(monkeypatch, triton, numpy, runs):
    monkeypatch.setattr(env, "versions", lambda: {"triton": triton, "numpy": numpy})
    monkeypatch.setattr(env, "has_gpu", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if runs:
        env.interpret_without_gpu()
        assert env.interpreting()
    else:
        with pytest.raises(Unavailable, match="needs NumPy below"):
            env.interpret_without_gpu()


def test_missing_checkout_folder_is_one_clear_error():
    with pytest.raises(Unavailable, match="nowhere/ belongs to a checkout"):
        env.checkout("nowhere")


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    env.atomic_write(target, "old")
    monkeypatch.setattr(env.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        env.atomic_write(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_cache_folder_follows_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("G4LAB_CACHE", str(tmp_path / "here"))
    assert env.cache_dir() == tmp_path / "here"
    assert env.cache_dir().is_dir()
