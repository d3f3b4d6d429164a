"""Batch runs with real papermill, real kernels and real kills, on notebooks of two or three cells."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from g4lab import batch, profiles, records, report
from g4lab.batch import notebooks, scheduler
from g4lab.errors import BadInput
from g4lab.profiles import Profile

PROFILE = Profile(name="test", machine="any", jobs=2, cell_timeout_s=60, notebook_timeout_s=120)
STAMP = """import time, os, pathlib
marks = pathlib.Path({folder!r})
with open(marks / '{name}', 'a') as f: f.write(f'{{time.time()}} ')"""
PLOT = (
    "import base64\nfrom IPython.display import Image, display\n"
    "display(Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))"
)


def write(folder: Path, name: str, *cells: str, parameters: str = "tokens = [1, 2]\nscale = 1.0", **g4lab) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, **({"g4lab": g4lab} if g4lab else {})})
    book.cells = [nbformat.v4.new_markdown_cell(f"# The story of {name}")]
    if parameters:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def go(paths, folder, profile=PROFILE, given=None):
    state = batch.prepare([str(path) for path in paths], profile, given or {}, folder)
    return batch.run(state, folder)


def stamps(folder: Path, name: str) -> list[float]:
    return [float(text) for text in (folder / name).read_text().split()] if (folder / name).exists() else []


def mark(folder: Path, name: str) -> str:
    return STAMP.format(folder=str(folder), name=name)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_parameters_records_and_report(tmp_path):
    first = write(
        tmp_path,
        "10_first",
        "print('Verdict: sum', sum(tokens), type(tokens).__name__, scale)",
        "from g4lab import records\nrecords.append(records.new_record('sum', {'v': sum(tokens)})).name",
        PLOT,
    )
    broken = write(
        tmp_path, "20_broken", "print('before')", "# why\nraise ValueError('[bold] no <b>')", "print('never')"
    )
    plain = write(tmp_path, "30_plain", "1 + 1", parameters="")
    profile = PROFILE.model_copy(update={"parameters": {"10_first": {"scale": 2.5}}})
    state = go([first, broken, plain], tmp_path / "run", profile, {"tokens": [5, 6]})

    assert {name: entry.state for name, entry in state.notebooks.items()} == {
        "10_first": "done",
        "20_broken": "failed",
        "30_plain": "done",
    }
    fault = state.notebooks["20_broken"]
    assert (fault.cell, fault.error) == ("In [4]: raise ValueError('[bold] no <b>')", "ValueError: [bold] no <b>")
    partial = json.loads((tmp_path / "run/notebooks/20_broken.ipynb").read_text())["cells"]
    texts = ["".join(output["text"]) for cell in partial for output in cell.get("outputs", []) if "text" in output]
    assert texts == ["before\n"]
    (record,) = records.read(tmp_path / "run/records").records
    assert record.values == {"v": 11}

    html = report.write(tmp_path / "run").read_text()
    assert "Verdict: sum 11 list 2.5" in html
    assert html.count("<img alt=") == 1
    assert "The story of 20_broken" in html
    assert "ValueError: [bold] no &lt;b&gt;" in html
    assert "html/20_broken.html" in html
    assert (tmp_path / "run/html/20_broken.html").stat().st_size > 1000
    assert 'src="http' not in html
    assert "prefers-color-scheme: dark" in html


def test_what_measures_time_runs_alone_and_what_comes_after_waits(tmp_path):
    def busy(name):
        return f"{mark(tmp_path, name)}\ntime.sleep(1.0)\n{mark(tmp_path, name)}"

    books = [
        write(tmp_path, "a", busy("a"), after=["d", "elsewhere"]),
        write(tmp_path, "b", busy("b")),
        write(tmp_path, "c", busy("c"), exclusive=True),
        write(tmp_path, "d", busy("d")),
    ]
    state = go(books, tmp_path / "run")
    assert all(entry.state == "done" for entry in state.notebooks.values())
    span = {name: stamps(tmp_path, name) for name in "abcd"}
    assert span["d"][1] < span["a"][0]
    assert span["b"][0] < span["d"][1]
    assert span["d"][0] < span["b"][1]  # b and d side by side
    for other in "abd":
        assert span["c"][1] < span[other][0] or span[other][1] < span["c"][0]


def test_notebooks_that_wait_for_each_other(tmp_path):
    books = [write(tmp_path, "a", after=["b"]), write(tmp_path, "b", after=["a"])]
    with pytest.raises(BadInput, match=r"wait for each other.*a, b"):
        batch.prepare([str(book) for book in books], PROFILE, {}, tmp_path / "run")


def test_a_cell_and_a_notebook_that_hang_are_stopped(tmp_path):
    slow_cell = write(tmp_path, "cell", "x = 1", "import time\ntime.sleep(300)")
    profile = PROFILE.model_copy(update={"cell_timeout_s": 2})
    entry = go([slow_cell], tmp_path / "one", profile).notebooks["cell"]
    assert (entry.state, entry.error) == ("failed", "ran longer than 2 s")
    assert entry.cell == "In [3]: import time"

    steps = write(
        tmp_path,
        "steps",
        f"import os, pathlib\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))",
        "import time\ntime.sleep(300)",
    )
    profile = PROFILE.model_copy(update={"notebook_timeout_s": 15})
    entry = go([steps], tmp_path / "two", profile).notebooks["steps"]
    assert entry.state == "failed"
    assert entry.error == "stopped: the notebook ran longer than 15 s"
    assert entry.cell == "In [3]: import time"
    kernel = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(kernel), 15)


def test_a_kernel_that_dies_is_named(tmp_path):
    book = write(tmp_path, "dead", "x = 1", "import os\nos._exit(9)")
    entry = go([book], tmp_path / "run").notebooks["dead"]
    assert (entry.state, entry.error, entry.cell) == ("failed", "its kernel died", "In [3]: import os")


def start_cli(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "from g4lab.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def two_books(tmp_path):
    """A quick notebook and one that sleeps until a file `go` is there; both count their runs."""
    quick = write(tmp_path, "1_quick", mark(tmp_path, "quick"))
    wait = "(marks / 'pid').write_text(str(os.getpid()))\nwhile not (marks / 'go').exists(): time.sleep(0.1)"
    slow = write(tmp_path, "2_slow", mark(tmp_path, "slow") + "\n" + wait, after=["1_quick"])
    profile = tmp_path / "p.yaml"
    profile.write_text("name: small\nmachine: any\njobs: 2\n")
    return ["run", quick, slow, "--profile", profile, "--out", tmp_path / "run"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing_behind_and_resumes(tmp_path, two_books, number):
    process = start_cli(*two_books)
    wait_for((tmp_path / "pid").exists)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2  # the notebook's process and its kernel
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=40)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), text
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 15)

    state = batch.load_state(tmp_path / "run")
    assert state.notebooks["1_quick"].state == "done"
    assert state.notebooks["2_slow"].state == ("running" if number == signal.SIGKILL else "stopped")
    (tmp_path / "go").touch()
    resumed = start_cli("run", "--resume", "--out", tmp_path / "run")
    text, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, text
    assert "1_quick: " not in text  # not run again
    assert "2_slow: done" in text
    assert len(stamps(tmp_path, "quick")) == 1
    assert len(stamps(tmp_path, "slow")) == 2
    assert (tmp_path / "run/report.html").exists()


def test_resume_runs_again_what_changed_and_what_comes_after_it(tmp_path):
    books = [
        write(tmp_path, "a", mark(tmp_path, "a")),
        write(tmp_path, "b", mark(tmp_path, "b"), after=["a"]),
        write(tmp_path, "c", mark(tmp_path, "c")),
    ]
    folder = tmp_path / "run"
    go(books, folder)
    write(tmp_path, "a", mark(tmp_path, "a"), "'new'")
    state = batch.run(batch.reopen(folder), folder)
    assert all(entry.state == "done" for entry in state.notebooks.values())
    assert [len(stamps(tmp_path, name)) for name in "abc"] == [2, 2, 1]


def test_one_folder_serves_one_run_at_a_time(tmp_path):
    book = write(tmp_path, "a", "1")
    state = batch.prepare([str(book)], PROFILE, {}, tmp_path / "run")
    with scheduler.only_one(tmp_path / "run", "g4lab run"), pytest.raises(BadInput, match="no other `g4lab run`"):
        batch.run(state, tmp_path / "run")


def test_what_notebooks_accept(tmp_path):
    book = notebooks.load(
        write(tmp_path, "a", parameters="n = 3\nx = 1.0\nname = 'q'\nflag = True\nrate = float('inf')")
    )
    assert book.accept({"n": 4, "x": 2, "name": "w", "flag": False, "rate": 3}) == {
        "n": 4,
        "x": 2,
        "name": "w",
        "flag": False,
        "rate": 3,
    }
    for name, value in {"n": "4", "x": "y", "name": 3, "flag": 1}.items():
        with pytest.raises(BadInput, match=f"a: {name}: got"):
            book.accept({name: value})
    with pytest.raises(BadInput, match="no parameter 'm'; it declares: n, x, name, flag, rate"):
        book.accept({"m": 1})


def test_assignments_are_yaml():
    texts = ["a=[1, 64]", "b=3", "c=1e-3", "d=inf", "e=true", "f=tiny-moe", "g=", "h='3'", "i=a=b"]
    found = profiles.parse_assignments(texts)
    assert found == {
        "a": [1, 64],
        "b": 3,
        "c": 1e-3,
        "d": float("inf"),
        "e": True,
        "f": "tiny-moe",
        "g": None,
        "h": 3.0,
        "i": "a=b",
    }
    for wrong in ("a", "=3", "1a=3", "a=[1"):
        with pytest.raises(BadInput, match="-p: got"):
            profiles.parse_assignments([wrong])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: [", "cannot be read as YAML"),
        ("- a", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: x\nmachine: y\njobs: 0", "jobs: Input should be greater than 0"),
        ("name: x\nmachine: y\nparamters: {}", "paramters: Extra inputs"),
        ("name: x", "machine: Field required"),
        ("name: x\nmachine: y\nparameters: {a: 3}", "parameters.a: Input should be a valid dictionary"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_a_malformed_profile_is_one_clear_line(tmp_path, text, reason):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        profiles.load_profile(str(path))
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_notebooks_and_parameters_stop_a_run_before_it_starts(tmp_path):
    book = write(tmp_path, "a", "1")
    (tmp_path / "cut.ipynb").write_bytes(book.read_bytes()[:100])
    (tmp_path / "empty.ipynb").touch()
    for name in ("cut", "empty"):
        with pytest.raises(BadInput, match=f"{name}.ipynb: cannot be read"):
            notebooks.find([str(tmp_path / f"{name}.ipynb")])
    with pytest.raises(BadInput, match=r"notebook: got .*nope\.ipynb"):
        notebooks.find([str(tmp_path / "nope.ipynb")])
    found = notebooks.find([str(book)])
    with pytest.raises(BadInput, match=r"-p: got 'nope', expected a parameter.*scale, tokens"):
        notebooks.parameters_for(found, {}, {"nope": 1})
    with pytest.raises(BadInput, match="profile: parameters: got 'b'"):
        notebooks.parameters_for(found, {"b": {}}, {})
    with pytest.raises(BadInput, match="a has no parameter 'depth'"):
        notebooks.parameters_for(found, {"a": {"depth": 1}}, {})


def test_no_run_to_resume(tmp_path):
    with pytest.raises(BadInput, match="at least one run"):
        batch.newest_run(tmp_path)
    with pytest.raises(BadInput, match=r"a folder of `g4lab run`"):
        batch.reopen(tmp_path)
    (tmp_path / "state.json").write_text('{"version": 1')
    with pytest.raises(BadInput, match=r"state\.json"):
        batch.reopen(tmp_path)
