"""The commands config show, config path, completion and doctor."""

import json
import os
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import answer, answer_table
from daemon.core.command import Json, config_file, load, needs
from daemon.core.names import Role

if TYPE_CHECKING:
    from pydantic import BaseModel

    from daemon.core.config.settings import Config

config_app = typer.Typer(help="Show the configuration and its file.", no_args_is_help=True)
_MASK = "***"


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(config_app, name="config")
    app.command("doctor")(doctor)
    app.command("completion")(completion)


@config_app.command("show")
@needs(Role.READ)
def config_show(context: typer.Context, as_json: Json = False) -> None:
    """List every key with its value, origin and meaning, with secrets masked.

    Examples: errata config show | errata config show --json
    """
    config = load(context)
    rows = describe(config, config_file(context))
    document = {"config": {row["key"]: {k: row[k] for k in ("value", "from")} for row in rows}}
    answer_table(document, "keys", ("key", "value", "from", "meaning"), rows, as_json)


@config_app.command("path")
@needs(Role.READ)
def config_path(context: typer.Context, as_json: Json = False) -> None:
    """Print the path of the configuration file in use.

    Example: errata config path
    """
    file = config_file(context)
    path = None if file is None else str(file.resolve())
    answer({"path": path}, path or "none: defaults and environment", as_json)


class Shell(StrEnum):
    """The shells that have completion scripts."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@needs(Role.READ)
def completion(shell: Annotated[Shell, typer.Argument(help="the shell to complete in")]) -> None:
    """Print the script with which a shell completes commands and options of errata.

    Example: errata completion bash > ~/.local/share/bash-completion/completions/errata
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="errata", complete_var="_ERRATA_COMPLETE", shell=shell))


@needs(Role.READ)
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check the installation for common mistakes and print what mends each.

    Exit status 1 when there is one.

    Examples: errata doctor | errata doctor --json
    """
    from daemon.core.errors import ConfigError
    from daemon.core.findings import Finding
    from daemon.upkeep.doctor import examine

    try:
        config = load(context)
    except ConfigError as error:
        mend = error.hint or "correct it; errata config show lists the keys"
        findings = [Finding("config", False, error.message, mend)]
    else:
        file = str(config_file(context) or "defaults and environment")
        findings = [Finding("config", True, file), *examine(config)]
    rows = [
        {"check": one.check, "ok": one.ok, "result": "ok" if one.ok else "problem"}
        | {"detail": one.detail, "fix": one.fix}
        for one in findings
    ]
    sound = all(one.ok for one in findings)
    columns = ("check", "result", "detail", "fix")
    answer_table({"ok": sound, "checks": rows}, "checks", columns, rows, as_json)
    if not sound:
        raise typer.Exit(1)


def describe(config: "Config", file: Path | None) -> list[dict[str, Any]]:
    """Every key with its value (secrets masked), its origin and its meaning."""
    from daemon.core.config.settings import known_keys

    written = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    return [
        {"key": key, "value": _value(config, key), "from": _origin(key, written), "meaning": meaning}
        for key, meaning in known_keys().items()
    ]


def _value(config: "BaseModel", key: str) -> Any:
    """The value of a dotted key as plain JSON, with secrets masked."""
    from pydantic import BaseModel, SecretStr

    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, tuple):
        return [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    return str(value) if isinstance(value, Path) else value


def _origin(key: str, written: dict[str, Any]) -> str:
    """Where a value comes from: the name of a variable, ``file`` or ``default``."""
    variable = "ERRATA_" + key.upper().replace(".", "__")
    if any(name == variable or name.startswith(variable + "__") for name in os.environ):
        return variable
    section, _, rest = key.partition(".")
    if rest and rest in _json_variable(f"ERRATA_{section.upper()}"):
        return f"ERRATA_{section.upper()}"
    node: Any = written
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return "REDIS_URL" if key == "redis_url" and os.environ.get("REDIS_URL") else "default"
        node = node[part]
    return "file"


def _json_variable(name: str) -> dict[str, Any]:
    """A whole section given as JSON in one variable."""
    try:
        value = json.loads(os.environ.get(name, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
