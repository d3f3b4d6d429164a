"""`g4lab ...`: finds the command's module, runs it, and turns every expected error into one line and an exit code.

Exit codes: 0 done, 1 it failed, 2 the input cannot be used, 130 interrupted.
"""

import importlib
import sys

import typer
from typer.core import TyperGroup

from g4lab.commands._group import group
from g4lab.errors import BadInput, G4LabError

COMMANDS = (
    "doctor",
    "models",
    "profile",
    "trace",
    "bench",
    "tune",
    "run",
    "serve",
    "ab",
    "experts",
    "quality",
    "plan",
    "kv",
    "bisect",
    "record",
    "report",
    "campaign",
    "bundle",
    "claims",
)


class _OnDemand(TyperGroup):
    """Imports a command's module when the command is asked for, so that `g4lab --help` stays fast."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"g4lab.commands.{cmd_name}")
        if hasattr(module, "app"):
            app = module.app
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            app.command(cmd_name)(module.command)
        made = typer.main.get_command(app)
        made.name = cmd_name
        return made


app = group(cls=_OnDemand)


@app.callback()
def _g4lab() -> None:
    """A research lab for making Gemma-4 fast on SGLang: notebooks, kernels, the real server, and their records.

    `g4lab COMMAND --help` explains each, with examples.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's own) and return the exit code."""
    try:
        code = app(arguments, prog_name="g4lab", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:  # unknown command, option or value
        return _say(error.format_message(), error.exit_code)
    except BadInput as error:
        return _say(str(error), 2)
    except G4LabError as error:
        return _say(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except BrokenPipeError:
        return 0


def _say(message: str, code: int) -> int:
    """One line; what follows the first line of a message (a log's end) stands indented below it."""
    first, *details = message.strip().splitlines() or [""]
    if first:  # empty where Typer has shown the help instead
        print("\n    ".join([f"g4lab: {first}", *details]), file=sys.stderr)
    return code
