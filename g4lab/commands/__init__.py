"""The commands of `g4lab`: one module each, imported only when that command (or the list of all) is asked for.

A module holds either `command`, a function with Typer annotations, or `app`, a `typer.Typer` with commands of its
own. Its docstring is the help text, examples under "Examples:". Heavy packages are imported inside the function.
"""
