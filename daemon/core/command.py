"""Configuration, roles and JSON output for the commands of all packages."""

import getpass
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from daemon.core.names import Role
from daemon.core.text import printable

if TYPE_CHECKING:  # imported where they are used, so that a command starts fast
    from daemon.core.config.settings import Config

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
_LONGEST_NAME = 100  # characters of a name in the audit: enough for any login name
_Command = TypeVar("_Command", bound=Callable[..., Any])


class CommandContext:
    """What the options before a command's name decide, kept as ``obj`` of typer's context."""

    def __init__(self, given_file: Path | None) -> None:
        self._given_file = given_file

    @cached_property
    def config_file(self) -> Path | None:
        """The configuration file in use, or None for defaults and environment only."""
        from daemon.core.config.settings import find_config

        return find_config(self._given_file)

    @cached_property
    def config(self) -> "Config":
        """The configuration, read and applied to logging at the first use. Raises ConfigError if invalid."""
        from daemon.core.config.settings import load_config
        from daemon.core.log import configure_logging

        config = load_config(self._given_file)
        configure_logging(config.log.level, json_lines=config.log.json_lines)  # stdout is for answers
        return config


def load(context: typer.Context) -> "Config":
    """The configuration, after a check that the caller's role suffices for the command.

    Raises ConfigError if the configuration is not valid, ForbiddenError if the role does not suffice.
    """
    shared: CommandContext = context.obj
    command = context.command_path.partition(" ")[2]
    require_role(shared.config, needed_role(context.command), f"errata {command}")
    return shared.config


def config_file(context: typer.Context) -> Path | None:
    """The configuration file in use, or None for defaults and environment only."""
    shared: CommandContext = context.obj
    return shared.config_file


def needs(role: Role) -> Callable[[_Command], _Command]:
    """A decorator that states the role of a command, which is ``operate`` without it."""

    def mark(command: _Command) -> _Command:
        vars(command)["needed_role"] = role
        return command

    return mark


def needed_role(command: Any) -> Role:
    """The role that a click command needs."""
    role: Role = getattr(command.callback, "needed_role", Role.OPERATE)
    return role


def require_role(config: "Config", needed: Role, what: str) -> None:
    """Raise ForbiddenError unless the caller's role includes ``needed``.

    The caller has the role of the token in ``ERRATA_TOKEN_FILE`` (ConfigError if it is none of ``[api]``),
    else ``cli.role``. It guards against slips, not against the owner of ``data_dir``: see SECURITY.md.
    """
    from daemon.core.config.settings import TOKEN_VARIABLE
    from daemon.core.errors import ForbiddenError

    role = _role_of_caller(config)
    if not role.includes(needed):
        raise ForbiddenError(
            f"{what!r} needs the role {needed}, yours is {role}",
            hint=f"let {TOKEN_VARIABLE} name a file with a token of that role, or see cli.role",
        )


def who() -> str:
    """The caller's name for the audit, from ``ERRATA_WHO`` or the login."""
    name = os.environ.get("ERRATA_WHO", "").strip()
    if not name:
        try:
            name = getpass.getuser()
        except (OSError, KeyError, ImportError):  # no name for this uid: a container
            name = f"uid {os.getuid()}"
    return printable(name, _LONGEST_NAME)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, default=str))


def _role_of_caller(config: "Config") -> Role:
    from daemon.core.config.settings import TOKEN_VARIABLE
    from daemon.core.errors import ConfigError
    from daemon.core.tokens import Keys, read_token

    file = os.environ.get(TOKEN_VARIABLE)
    if not file:
        return config.cli.role
    role = Keys(config.api.token_files).role_of(read_token(Path(file)))
    if role is None:
        raise ConfigError(
            f"the token in {TOKEN_VARIABLE} is none of this installation's",
            hint="see api.token_file, api.submit_token_file and api.read_token_file",
        )
    return role
