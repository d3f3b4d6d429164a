"""The errors a user can cause or meet, each one line long: what, the value seen, what was expected."""


class G4LabError(Exception):
    """Base of every error that g4lab raises on purpose; the command line prints it as one line and exits non-zero."""


class BadInput(G4LabError, ValueError):
    """An argument, file or setting that cannot be used as given."""


class Unavailable(G4LabError, RuntimeError):
    """Something this machine, environment or version does not have, or that stopped working while in use."""


def bad(name: str, value: object, expected: str) -> BadInput:
    """The house's one sentence for bad input: names the argument, shows the value, says what was expected."""
    shown = value if isinstance(value, str) and len(value) > 40 else repr(value)
    return BadInput(f"{name}: got {shown}, expected {expected}")
