"""Roles of people at the keyboard: what a command needs, and who may run it.

A guard against slips on a shared account, not against the owner of ``data_dir``: see SECURITY.md.
"""

import os
from pathlib import Path

from daemon.core.config.settings import TOKEN_VARIABLE, Config
from daemon.core.errors import ConfigError, ForbiddenError
from daemon.core.names import Role
from daemon.core.tokens import Keys, read_token

_LOOKS = frozenset(
    ["status", "facts", "revisions", "show", "incidents", "metrics", "diff",
     "top", "why", "doctor", "completion", "recipes", "ask", "locate",
     "audit list", "audit verify", "quarantine list", "feeds list",
     "feeds test", "config show", "config path"]
)  # fmt: skip
_SUBMITS = frozenset({"submit"})


def needed_role(command: str) -> Role:
    """What a command needs, named without ``errata``; what is not known to be harmless needs everything."""
    if command in _LOOKS or command.startswith("bench "):
        return Role.READ
    return Role.SUBMIT if command in _SUBMITS else Role.OPERATE


def require_role(config: Config, needed: Role, what: str) -> None:
    """Let nobody through whose role is lesser: that of the token in ``ERRATA_TOKEN_FILE``, else ``cli.role``.

    Raises:
        ForbiddenError: the role does not suffice. ConfigError: the token is none of ``[api]``.
    """
    role = _role(config)
    if not role.includes(needed):
        raise ForbiddenError(
            f"«{what}» needs the role {needed}, yours is {role}",
            hint=f"let {TOKEN_VARIABLE} name a file with a token of that role, or see cli.role",
        )


def _role(config: Config) -> Role:
    file = os.environ.get(TOKEN_VARIABLE)
    if not file:
        return config.cli.role
    role = Keys(config.api.token_files).role_of(f"Bearer {read_token(Path(file))}")
    if role is None:
        raise ConfigError(
            f"the token in {TOKEN_VARIABLE} is none of this installation's",
            hint="see api.token_file, api.submit_token_file and api.read_token_file",
        )
    return role
