"""The house's one way to make a command that holds others."""

import typer


def group(help: str | None = None, **options) -> typer.Typer:
    """A Typer app without completion or tracebacks of its own, which shows its help when called bare."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        help=help,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        **options,
    )
