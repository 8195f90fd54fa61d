"""The command ``errata`` with the commands of all packages, its error messages and exit statuses."""

import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from daemon.cli import act, config, feeds, keep, look, quarantine, watch
from daemon.cli.common import answer
from daemon.core.command import CommandContext, Json, config_file, load
from daemon.core.errors import ErrataError
from daemon.core.text import printable

ENTRY_POINTS = "errata.commands"
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
_LONGEST = 4_000  # characters of a message or hint: a long path or SQL statement fits
_EPILOG = (
    "Exit status: 0 done; 1 refused, or a check found a problem; 2 wrong usage or configuration; "
    "3 a service does not answer; 4 the ledger refuses; 5 no such revision, fact or entry; "
    "6 the store refuses; 7 the model cannot be used; 8 done, but damaged blobs were left out; "
    "70 a bug in Errata (--debug shows where). "
    "Example: errata --config /etc/errata/errata.toml status"
)


class Commands(TyperGroup):
    """A group whose commands report an ``ErrataError`` in two lines and end with its exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ErrataError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            print_error(error.message, error.hint)
            raise typer.Exit(error.exit_code) from error


def make_cli() -> typer.Typer:
    """The application with the commands of this package and of every package that adds some."""
    app = typer.Typer(
        cls=Commands,
        name="errata",
        help="Keep the facts inside a language model current: streamed, versioned, probed, reversible.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_global_options)
    app.command("run")(run)
    app.command("version")(version)
    for module in (look, watch, act, quarantine, feeds, keep, config):
        module.add_commands(app)
    _add_foreign_commands(app)
    return app


def main() -> None:
    """Run the command line and end the process with an exit status that its help lists."""
    try:
        make_cli()(prog_name="errata")
    except Exception as error:  # noqa: BLE001  # process edge: a bug is reported in two lines
        if "--debug" in sys.argv:
            traceback.print_exc()
        print_error(
            f"unexpected {type(error).__name__}: {error}", "this is a bug in Errata; --debug shows where"
        )
        sys.exit(UNEXPECTED)


def print_error(message: str, hint: str = "") -> None:
    """Print what is wrong and what to do on stderr."""
    typer.echo(f"error: {printable(message, _LONGEST)}", err=True)
    if hint:
        typer.echo(f"  {printable(hint, _LONGEST)}", err=True)


def _global_options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="configuration file; default ERRATA_CONFIG, ./errata.toml, /etc/errata"
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="print the traceback of an error")] = False,
) -> None:
    context.obj = CommandContext(config)


def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="end when feeds and queue are empty")] = False,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="only scheduler and API; errata worker runs on another host")
    ] = False,
) -> None:
    """Start Redis, scheduler, API and one editing worker on this machine.

    SIGTERM, SIGINT or SIGHUP ends all of them within 10 seconds, a second signal at once. What was in work by
    then comes again.

    Examples: errata run | errata run --once | errata run --no-worker
    """
    from daemon.embedded.run import run_command

    settings = load(context)
    run_command(settings, config_file(context), once=once, with_model=not no_worker)


def version(as_json: Json = False) -> None:
    """Print the version of Errata.

    Example: errata version
    """
    from daemon.core.version import version as this

    answer({"version": this()}, f"errata {this()}", as_json)


def _add_foreign_commands(app: typer.Typer) -> None:
    """Add the commands of other packages, and warn about those that cannot be loaded."""
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()(app)
        except Exception as error:  # noqa: BLE001  # foreign code may raise anything
            why = printable(f"{type(error).__name__}: {error}", _LONGEST)
            typer.echo(f"warning: the commands of {entry.name!r} are missing: {why}", err=True)
