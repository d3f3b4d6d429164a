"""install.sh on a small bundle: the real g4lab wheel and one that has to be split, installed without a network."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from g4lab import env
from g4lab.bundle import checkout, manifest, parcels, stand_ins, wheels
from g4lab.bundle.node import Node
from g4lab.bundle.recipe import Recipe

PYTHON = ".".join(platform.python_version_tuple()[:2])
TORCH = ".".join(importlib.metadata.version("torch").split(".")[:2])
LIMIT = parcels.MIN_LIMIT
LARGE = os.urandom(LIMIT + 1000)
# A namespace without interfaces, where this user may make one: nothing can be fetched there.
OFFLINE = ["unshare", "-n"] if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0 else []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A bundle for this interpreter and its torch."""
    work, folder = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("bundle")
    about = [
        ("large_thing/__init__.py", b"", False),
        ("large_thing/data", LARGE, False),
        ("large_thing-3.dist-info/METADATA", b"Metadata-Version: 2.1\nName: large-thing\nVersion: 3\n", False),
        (
            "large_thing-3.dist-info/WHEEL",
            b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            False,
        ),
    ]
    large = wheels.write(work / "large_thing-3-py3-none-any.whl", about)
    stand_in = stand_ins.make_wheel({"absent_thing": ["f"]}, work)
    ours = checkout.make_wheel(work)
    contents = {"data/there.txt": b"1", env.COMMIT_FILE: b"0123456789abcdef+\n"}
    files = {f"site/{large.name}": large, f"site/{stand_in.name}": stand_in, f"g4lab/{ours.name}": ours}
    files["checkout.tar.gz"] = checkout.pack(contents, work / "checkout.tar.gz")
    files["model.tar.gz"] = checkout.pack({"config.json": b"{}"}, work / "model.tar.gz")
    left_out = {"jupyterlab": "nobody looks at notebooks in a test"}
    recipe = Recipe(PYTHON, TORCH, work / "no.lock", {}, {}, left_out, {"absent_thing": ("f",)})
    node = Node("this machine", PYTHON, "2.17", ("sh", "no-such-tool"), {})
    carried = [wheels.metadata(path) for name, path in files.items() if name.endswith(".whl")]
    manifest.write(manifest.about(recipe, node, carried, [], LIMIT) | manifest.pack(files, LIMIT, folder), folder)
    return folder


def install(bundle: Path, dest: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    command = [*OFFLINE, "sh", str(bundle / "install.sh"), str(dest)]
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHON": python}
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=dest.parent)


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory) -> tuple[Path, str]:
    """DEST and what the installation said; it runs over a damaged earlier one."""
    dest = tmp_path_factory.mktemp("node") / "a folder"
    (dest / "site" / "large_thing").mkdir(parents=True)
    (dest / "site" / "large_thing" / "data").write_bytes(b"old")
    (dest / ".unpacked").mkdir()
    done = install(made, dest)
    assert done.returncode == 0, done.stdout + done.stderr
    return dest, done.stdout


def test_the_large_wheel_was_split(made):
    content = json.loads((made / "manifest.json").read_text())
    assert len(content["files"]["site/large_thing-3-py3-none-any.whl"]["parcels"]) == 2
    for name, parcel in content["parcels"].items():
        assert parcel["size"] == (made / name).stat().st_size <= LIMIT
        assert parcel["sha256"] == parcels.sha256(made / name)


def test_everything_is_in_its_place(installed):
    dest, _ = installed
    assert (dest / "site" / "large_thing" / "data").read_bytes() == LARGE
    assert (dest / "g4lab" / "data" / "there.txt").read_text() == "1"
    assert (dest / "model" / "config.json").read_text() == "{}"
    assert not (dest / ".unpacked").exists()


def test_what_the_node_lacks_is_said_and_doctor_ran(installed):
    _, said = installed
    assert "lacking: no no-such-tool on the PATH" in said
    assert "node: 1 lacking, 0 differing" in said
    assert "`make run` can work here." in said


def test_the_environment_runs_the_installed_g4lab(installed):
    dest, _ = installed
    code = "import absent_thing, g4lab.env as e; print(e.__file__, *e.commit(), e.checkout('data'))"
    script = f'. "{dest}/env.sh" && . "{dest}/env.sh" && python3 -c "{code}" && echo "$PYTHONPATH" && g4lab --help'
    variables = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], "PYTHONPATH": "/else/where"}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=variables, check=True, cwd="/")
    first, path, *_ = done.stdout.splitlines()
    assert first == f"{dest}/g4lab/g4lab/env.py 0123456789abcdef True {dest}/g4lab/data"
    assert path == f"{dest}/g4lab:{dest}/site:/else/where"
    assert "bundle" in done.stdout


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def change(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda b: (b / "parcel-02.tar").unlink(), "missing parcel parcel-02.tar: copy it again"),
        (lambda b: damage(b / "parcel-01.tar"), "wrong hash of parcel parcel-01.tar: copy it again"),
        (lambda b: (b / "manifest.json").unlink(), "missing file manifest.json: it belongs beside install.sh"),
        (
            lambda b: change(b / "manifest.json", "python", "2.7"),
            f"is Python {PYTHON}, this bundle is for 2.7: set PYTHON",
        ),
        (lambda b: change(b / "manifest.json", "torch", "1.13"), "this bundle is for 1.13: set PYTHON"),
    ],
)
def test_each_fault_is_one_clear_error_before_anything_is_written(copy, tmp_path, harm, says):
    harm(copy)
    done = install(copy, tmp_path / "dest")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("install.sh: ")
    assert done.stderr.rstrip().endswith(says)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "dest").exists()


def test_a_file_that_does_not_match_after_joining(copy, tmp_path):
    sums = copy / "files.sha256"
    lines = [("0" * 64 + line[64:]) if "large_thing" in line else line for line in sums.read_text().splitlines(True)]
    sums.write_text("".join(lines))
    done = install(copy, tmp_path / "dest")
    assert done.returncode == 1
    assert "wrong hash of file site/large_thing-3-py3-none-any.whl" in done.stderr
    assert not (tmp_path / "dest" / "site").exists()


def test_an_interpreter_that_is_not_there(copy, tmp_path):
    done = install(copy, tmp_path / "dest", python="/no/python")
    assert done.returncode == 1
    assert done.stderr == "install.sh: no /no/python on this machine (PYTHON=... chooses the interpreter)\n"


def test_the_same_inputs_give_the_same_parcels(made, tmp_path):
    content = json.loads((made / "manifest.json").read_text())
    ours = checkout.make_wheel(tmp_path)
    assert parcels.sha256(ours) == content["files"][f"g4lab/{ours.name}"]["sha256"]
