"""The command line: fast and light to start, one line for each error, and commands that do what their help says."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from g4lab import cli, commands, env, records


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_command_module_is_listed_and_every_listed_command_exists():
    modules = {info.name for info in pkgutil.iter_modules(commands.__path__) if not info.name.startswith("_")}
    assert set(cli.COMMANDS) == modules
    for name in modules:
        module = importlib.import_module(f"g4lab.commands.{name}")
        assert hasattr(module, "command") != hasattr(module, "app"), name


def test_help_lists_every_command_without_loading_torch():
    code = (
        "import sys; from g4lab import cli; cli.run(['--help'])\n"
        "print({'torch', 'triton', 'transformers', 'sglang', 'papermill', 'pandas'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "light"
    for name in cli.COMMANDS:
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_explains_itself_with_an_example(capsys, name):
    _, out, _ = run(capsys, name, "--help")
    if hasattr(importlib.import_module(f"g4lab.commands.{name}"), "app"):
        listed = [line.split()[1] for line in out.split("Commands")[1].splitlines() if line.startswith("│ ")]
        shown = [run(capsys, name, sub, "--help")[1] for sub in listed if sub.islower()]
        assert any("Example" in text for text in shown)
    else:
        assert "Example" in out
        assert f"g4lab {name}" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nope"], "No such command 'nope'"),
        (["run", "--nope"], "No such option: --nope"),
        (["run", "no_such_notebook"], "notebook: got 'no_such_notebook', expected"),
        (["run", "--profile", "h9000"], "profile: got 'h9000', expected auto, "),
        (["run", "--profile", "missing.yaml"], "profile missing.yaml: cannot be read"),
        (["run", "-p", "tokens"], "-p: got 'tokens', expected name=value"),
        (["run", "--resume", "10_router"], "--resume: got '10_router', expected nothing beside --out"),
        (["run", "--resume", "--out", "/nowhere"], "run folder: got '/nowhere'"),
        (["report", "/nowhere"], "run folder: got '/nowhere'"),
        (["record", "list", "/nowhere"], "path: got '/nowhere'"),
        (["serve", "no-such-model"], "model: got 'no-such-model', expected"),
        (["serve", "tiny-moe", "--patches", "warp_speed"], "warp_speed"),
        (["serve", "tiny-moe", "--device", "tpu"], "device: got 'tpu'"),
        (["ab", "tiny-moe", "--b", "warp_speed"], "warp_speed"),
        (["ab", "tiny-moe", "--rounds", "0"], "rounds: got 0"),
        (["ab", "tiny-moe", "--rounds", "many"], "Invalid value for '--rounds'"),
        (["serve"], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, reason):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("g4lab: ")
    assert reason in err
    assert err.count("\n") == 1


def test_a_malformed_profile_file(capsys, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("name: x\nmachine: y\njob: 3\n")
    code, _, err = run(capsys, "run", "--profile", path)
    assert (code, err) == (2, f"g4lab: profile {path}: job: Extra inputs are not permitted\n")


def test_a_port_in_use(capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run(capsys, "serve", "tiny-moe", "--port", taken.getsockname()[1])
    assert code == 2
    assert "a free port" in err


def test_a_failure_is_one_line_with_its_log_below(capsys):
    from g4lab.errors import Unavailable

    assert cli._say(str(Unavailable("it died; its log ends:\nlast\nlines")), 1) == 1
    assert capsys.readouterr().err == "g4lab: it died; its log ends:\n    last\n    lines\n"


def test_records_are_listed_shown_and_committed_once(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(env, "data_dir", lambda: tmp_path / "data")
    here = tmp_path / "records"
    first, second = (records.new_record(name, {"median_us": 1.5}) for name in ("router.latency", "serving.ab"))
    for record in (first, second):
        records.append(record, here / f"{record.name}.jsonl")
    code, out, _ = run(capsys, "record", "list", here, "--name", "router.latency")
    assert code == 0
    assert first.id[:4] in out
    assert second.id[:4] not in out
    code, out, _ = run(capsys, "record", "show", first.id[:8], here)
    assert (code, records.from_json(out)) == (0, first)
    assert run(capsys, "record", "show", "zzzz", here)[0] == 2

    for expected in ("2 records added", "0 records added"):
        code, out, _ = run(capsys, "record", "commit", here, "--machine", "nvidia-h200")
        assert code == 0
        assert expected in out
    kept = records.read(tmp_path / "data" / "records" / "nvidia-h200").records
    assert [(r.id, r.kind) for r in kept] == [(first.id, "recorded"), (second.id, "recorded")]
    assert '"kind": "recorded"' in (tmp_path / "data/records/nvidia-h200/serving.ab.jsonl").read_text()

    (here / "serving.ab.jsonl").write_text("{cut")
    code, _, err = run(capsys, "record", "list", here)
    assert code == 1
    assert "serving.ab.jsonl:1: cut or not JSON" in err


def test_the_installed_command():
    done = subprocess.run([Path(sys.executable).parent / "g4lab", "nope"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "g4lab: No such command 'nope'.\n")
