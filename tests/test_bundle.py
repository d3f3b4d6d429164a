"""The parts of a bundle: wheels cut and rewritten, the closure of requirements, recipe and node files, parcels."""

import base64
import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from g4lab.bundle import checkout, closure, parcels, read_node, read_recipe, stand_ins, wheels
from g4lab.bundle.recipe import pins
from g4lab.bundle.there import problems
from g4lab.bundle.wheels import Metadata
from g4lab.commands.bundle import _bytes
from g4lab.errors import BadInput
from g4lab.gemma4.checkpoint import sglang_overrides

INFO = "thing-1.2.dist-info"
METADATA = (
    "Metadata-Version: 2.1\nName: Th.ing\nVersion: 1.2\nRequires-Dist: numpy>=2\nRequires-Dist: x; extra == 'y'\n"
)
FILES = [
    (f"{INFO}/METADATA", METADATA.encode(), False),
    (f"{INFO}/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", False),
    ("thing/__init__.py", b"from thing.data import x\n", False),
    ("thing/data/__init__.py", b"x = 1\n", False),
    ("thing/data/big.bin", bytes(5000), False),
    ("thing/run", b"#!/bin/sh\n", True),
]


@pytest.fixture
def wheel(tmp_path) -> Path:
    return wheels.write(tmp_path / "thing-1.2-py3-none-any.whl", FILES)


def recorded(wheel: Path) -> dict[str, tuple[str, str]]:
    with zipfile.ZipFile(wheel) as archive:
        rows = csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode()))
        return {name: (digest, size) for name, digest, size in rows}


def test_metadata_of_a_wheel(wheel):
    found = wheels.metadata(wheel)
    assert (found.name, found.version) == ("th-ing", Version("1.2"))
    assert [r.name for r in found.requires] == ["numpy", "x"]


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_metadata_of_no_wheel(tmp_path, content):
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(BadInput, match=r"wheel: got .*a\.whl"):
        wheels.metadata(tmp_path / "a.whl")


def test_slim_drops_and_records_what_is_left(wheel, tmp_path):
    made, cut = wheels.slim(wheel, tmp_path / "slim", ["thing/data/*.bin"])
    rows = recorded(made)
    with zipfile.ZipFile(made) as archive:
        assert (
            set(rows)
            == set(archive.namelist())
            == {name for name, *_ in FILES} - {"thing/data/big.bin"} | {f"{INFO}/RECORD"}
        )
        for name, (digest, size) in rows.items():
            if name.endswith("RECORD"):
                continue
            content = archive.read(name)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert int(size) == len(content)
        assert archive.getinfo("thing/run").external_attr >> 16 == 0o755
    assert (cut.files_dropped, cut.bytes_before, cut.bytes_after) == (1, wheel.stat().st_size, made.stat().st_size)


def test_slim_of_the_same_wheel_gives_the_same_bytes(wheel, tmp_path):
    shuffled = tmp_path / "shuffled" / wheel.name
    shuffled.parent.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(shuffled, "w") as new:
        for item in reversed(old.infolist()):
            new.writestr(zipfile.ZipInfo(item.filename, (2021, 5, 5, 5, 5, 6)), old.read(item))
    one, _ = wheels.slim(wheel, tmp_path / "1", ["thing/run"])
    other, _ = wheels.slim(shuffled, tmp_path / "2", ["thing/run"])
    assert one.read_bytes() == other.read_bytes()


def test_slim_refuses_a_glob_that_cuts_nothing(wheel, tmp_path):
    with pytest.raises(BadInput, match=r"drop: got 'thing/old/\*', expected a glob that matches a file of thing-1\.2"):
        wheels.slim(wheel, tmp_path / "slim", ["thing/data/*", "thing/old/*"])
    assert not list((tmp_path / "slim").iterdir())


def test_strip_takes_debug_data_from_a_real_library(tmp_path):
    import subprocess

    (tmp_path / "a.c").write_text("int answer(void) { return 42; }\n")
    subprocess.run(["gcc", "-g", "-shared", "-fPIC", "-o", "a.so", "a.c"], cwd=tmp_path, check=True)
    files = [*FILES, ("thing/a.so", (tmp_path / "a.so").read_bytes(), True)]
    made, cut = wheels.slim(wheels.write(tmp_path / "thing-1.2-py3-none-any.whl", files), tmp_path / "s", strip=True)
    with zipfile.ZipFile(made) as archive:
        (tmp_path / "b.so").write_bytes(archive.read("thing/a.so"))
    import ctypes

    assert ctypes.CDLL(str(tmp_path / "b.so")).answer() == 42
    assert cut.stripped
    assert b".debug_info" in (tmp_path / "a.so").read_bytes()
    assert b".debug_info" not in (tmp_path / "b.so").read_bytes()


def test_stand_ins_import_and_raise(tmp_path, monkeypatch):
    made = stand_ins.make_wheel({"absent_thing": ["f"], "absent_thing.part": ["g", "h"]}, tmp_path)
    monkeypatch.syspath_prepend(made)  # a wheel is a zip that Python imports from
    import absent_thing
    from absent_thing.part import g

    for call, name in ((absent_thing.f, "absent_thing.f"), (g, "absent_thing.part.g")):
        with pytest.raises(RuntimeError, match=f"{name} was called, but absent_thing is not in this bundle"):
            call(1, key=2)


def package(name: str, version: str = "1.0", *requires: str) -> Metadata:
    return Metadata(name, Version(version), tuple(map(Requirement, requires)))


def met_by(carried, present=None, left_out=None) -> dict[str, str | None]:
    return {n.requirement: n.met_by for n in closure.needs(carried, present or {}, left_out or {}, "3.12")}


def test_a_requirement_is_met_by_what_travels_before_what_is_there():
    carried = [package("a", "1.0", "b>=2", "c", "d==3", "e"), package("b", "2.5")]
    there = {"b": "1.0", "c": "", "d": "3"}
    assert met_by(carried, there, {"e": "why"}) == {"b>=2": "bundle", "c": "node", "d==3": "node", "e": "left out"}


@pytest.mark.parametrize(
    ("requires", "there"), [("b", {}), ("b>=2", {"b": "1.9"}), ("b<2", {"b": "2.0"}), ("b==2.*", {"b": "3"})]
)
def test_an_unmet_requirement_is_named(requires, there):
    with pytest.raises(BadInput, match=rf"a needs {requires[:1]}.*\(({'missing' if not there else 'there is'})"):
        closure.check([package("a", "1.0", requires)], there, {}, "3.12")


def test_markers_are_the_targets_and_extras_are_not_followed():
    requires = (
        "b; python_version < '3.12'",
        "c; sys_platform == 'win32'",
        "d; extra == 'all'",
        "e; python_version >= '3.12'",
    )
    assert met_by([package("a", "1", *requires)]) == {"e": None}


def test_left_out_names_only_what_is_asked_for():
    with pytest.raises(BadInput, match="left_out: got 'idle'"):
        closure.check([package("a", "1", "b")], {}, {"b": "why", "idle": "why"}, "3.12")


def test_the_shipped_recipe_says_why_of_everything_and_pins_what_it_cuts():
    recipe = read_recipe("3.12", "2.11")
    assert recipe.pins["sglang"] == "0.5.17"
    assert set(recipe.slim) <= set(recipe.pins)
    assert all(len(slim.why) > 20 and (slim.drop or slim.strip) for slim in recipe.slim.values())
    assert not set(recipe.left_out) & set(recipe.pins)
    assert all(len(why) > 20 for why in recipe.left_out.values())


def test_the_bundle_meets_what_g4lab_declares():
    """g4lab's own dependencies travel, are on the shipped node, or are left out by name."""
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    recipe, node = read_recipe("3.12", "2.11"), read_node()
    carried = [package("g4lab", "1", *project["dependencies"]), *(package(n, v) for n, v in recipe.pins.items())]
    unmet = {need for need, by in met_by(carried, node.packages, recipe.left_out).items() if by is None}
    assert not unmet


def test_an_unknown_pair_names_those_there_are():
    with pytest.raises(
        BadInput, match=r"got '3\.11, 2\.11', expected a pair that has a recipe: --python 3\.12 --torch"
    ):
        read_recipe("3.11", "2.11")


@pytest.mark.parametrize("line", ["numpy", "numpy>=2 --hash=sha256:" + "0" * 64, "numpy==2", "numpy==2 --hash=md5:1"])
def test_a_lock_without_version_or_hash_is_refused(tmp_path, line):
    (tmp_path / "a.lock").write_text(f"# a comment\n{line}\n")
    with pytest.raises(BadInput, match=r"a line of a\.lock"):
        pins(tmp_path / "a.lock")


def test_platforms_of_a_node_end_at_its_glibc():
    platforms = read_node().platforms
    assert platforms[0] == "manylinux_2_39_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64"} < set(platforms)


NODE = 'name = "n"\npython = "3.12"\nglibc = "2.31"\ntools = []\n[packages]\nTorch = "2.11.0"\n'


def test_a_node_file(tmp_path):
    (tmp_path / "n.toml").write_text(NODE)
    assert read_node(tmp_path / "n.toml").packages == {"torch": "2.11.0"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "n"\n', "", "no key 'name'"),
        ('"3.12"', '"3"', "python in n.toml: got '3'"),
        ('"2.31"', '"musl"', "glibc in n.toml: got 'musl'"),
        ("[packages]", "packages = 3 #", "TOML file"),
        ("tools = []", "tools = [", "TOML file"),
    ],
)
def test_a_wrong_node_file_is_one_clear_error(tmp_path, old, new, says):
    (tmp_path / "n.toml").write_text(NODE.replace(old, new))
    with pytest.raises(BadInput, match=says):
        read_node(tmp_path / "n.toml")


def test_no_node_file(tmp_path):
    with pytest.raises(BadInput, match="node: got"):
        read_node(tmp_path / "none.toml")


LIMIT = parcels.MIN_LIMIT


def files_of(folder: Path, sizes: list[int]) -> dict[str, Path]:
    for number, size in enumerate(sizes):
        (folder / f"f{number}").write_bytes(bytes([number % 251]) * size)
    return {f"whl/{'x' * 120 * (number % 2)}{number}": folder / f"f{number}" for number in range(len(sizes))}


@given(st.lists(st.integers(0, 3 * LIMIT), max_size=8))
def test_parcels_keep_the_limit_and_lose_nothing(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("parcels")
    files = files_of(folder, sizes)
    plan = parcels.plan(files, LIMIT)
    found: dict[str, bytes] = {}
    for parcel in plan:
        path = parcels.write(parcel, folder)
        assert path.stat().st_size <= LIMIT
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.name not in found
                found[member.name] = archive.extractfile(member).read()
    joined: dict[str, bytes] = {}
    for name in sorted(found):
        whole = name.split(".part-")[0]
        joined[whole] = joined.get(whole, b"") + found[name]
    assert joined == {name: path.read_bytes() for name, path in files.items()}
    needed = sum(size for size in sizes) / LIMIT
    assert len(plan) <= max(1, 2 * needed + 1)  # first-fit leaves at most one parcel half empty


@pytest.mark.parametrize("limit", [0, -1, LIMIT - 1])
def test_a_tiny_limit_is_refused(limit):
    with pytest.raises(BadInput, match=f"limit: got {limit}"):
        parcels.plan({}, limit)


@pytest.mark.parametrize(
    ("text", "size"), [("55MiB", 55 * 2**20), ("60 MB", 60_000_000), ("1.5GiB", 3 * 2**29), ("7B", 7)]
)
def test_sizes(text, size):
    assert _bytes(text) == size


@pytest.mark.parametrize("text", ["", "55", "MiB", "-1MiB", "5 TiB", "1e3MB"])
def test_wrong_sizes(text):
    with pytest.raises(BadInput, match="limit: got"):
        _bytes(text)


def test_the_checkout_travels_without_the_package_and_without_outputs():
    files = checkout.files()
    assert {"pyproject.toml", "tests/conftest.py", "COMMIT", "data/published/README.md"} <= set(files)
    assert not [name for name in files if name.startswith("g4lab/")]
    assert b"image/png" not in files["notebooks/10_router.ipynb"]
    assert len(files["COMMIT"].decode().strip().rstrip("+")) == 40


def test_packed_contents_come_back_and_are_the_same_bytes_again(tmp_path):
    contents = {"b/c.txt": b"1", "a": b"", "n" * 150: b"22"}
    one = checkout.pack(contents, tmp_path / "1.tar.gz")
    other = checkout.pack(dict(reversed(contents.items())), tmp_path / "2.tar.gz")
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as archive:
        assert {member.name: archive.extractfile(member).read() for member in archive} == contents


def test_what_differs_on_the_machine_is_named():
    import numpy

    manifest = {
        "packages": {"numpy": numpy.__version__, "pandas": "0.1", "absent-thing": "1.0"},
        "left_out": {},
        "python": "3.11",
        "tools": ["sh", "no-such-tool"],
    }
    lacking, differing = problems(manifest)
    assert [line.split()[0] for line in lacking] == ["pandas", "absent-thing", "no"]
    assert "no-such-tool" in lacking[-1]
    assert differing == []


def test_a_configuration_that_speaks_sglangs_names_needs_no_overrides():
    hugging_face = {"model_type": "gemma4_text", "head_dim": 256, "global_head_dim": 512, "num_key_value_heads": 8}
    overrides = sglang_overrides(hugging_face)
    assert overrides["swa_head_dim"] == 256
    assert sglang_overrides(hugging_face | overrides) == {}
