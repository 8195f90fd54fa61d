"""Print docs/reference.md, the reference of commands, configuration keys and metrics.

After a change run ``python -m daemon.cli.reference > docs/reference.md``. A test compares.
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any, get_args

import typer
from pydantic import BaseModel, SecretStr

from daemon.cli.main import make_cli
from daemon.core.config.settings import Config
from daemon.core.metrics import METRICS

_INTRO = """\
# Reference

All commands, configuration keys and metrics. `python -m daemon.cli.reference` prints this page from the code.
"""


def reference() -> str:
    """The page in Markdown."""
    group = typer.main.get_command(make_cli())
    parts = [_INTRO, "## Commands\n", *_commands(group)]
    parts += ["## Configuration\n", _EXPLAINED, *_sections(), "## Metrics\n", *_metrics()]
    return "\n".join(parts).rstrip() + "\n"


_EXPLAINED = """\
Keys are set in `errata.toml` or in the environment: `[edit] batch_size` is `ERRATA_EDIT__BATCH_SIZE`.
Unknown keys are refused. Repeated tables (`[[feeds]]`, `[[consumers]]`) are JSON in the environment.
"""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands of a group and its subgroups, each with the words that call it."""
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def _commands(group: Any) -> Iterator[str]:
    for path, command in commands(group, ("errata",)):
        arguments = [_shown(one) for one in command.params if one.param_type_name == "argument"]
        yield f"### `{' '.join([*path, *arguments])}`\n"
        yield inspect.cleandoc(command.help or "") + "\n"
        rows = [one for one in command.params if one.name != "help"]
        if rows:
            yield "\n".join(f"- `{_spelled(one)}`: {one.help or ''}{_default(one)}" for one in rows) + "\n"


def _shown(argument: Any) -> str:
    name = str(argument.name).upper() + ("…" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _spelled(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} …"


def _default(parameter: Any) -> str:
    value = parameter.default
    shown = isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""
    return f" (default {value})" if shown else ""


def _sections() -> Iterator[str]:
    tables = {name: list(_tables(name, field.annotation)) for name, field in Config.model_fields.items()}
    yield "### at the top\n"
    yield _key_table({name: field for name, field in Config.model_fields.items() if not tables[name]})
    for heading, table in (one for several in tables.values() for one in several):
        yield f"### `{heading}`\n"
        yield (inspect.getdoc(table) or "") + "\n"
        yield _key_table(dict(table.model_fields))


def _tables(name: str, annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Heading and model of each table that a key holds, none for a plain value."""
    for one in _leaves(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            kinds = " or ".join(_choices(one.model_fields["kind"])) if "kind" in one.model_fields else ""
            yield (f"[[{name}]] kind = {kinds}" if kinds else f"[{name}]"), one


def _leaves(annotation: Any) -> Iterator[Any]:
    arguments = getattr(annotation, "__args__", ())
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _choices(field: Any) -> list[str]:
    """The values that a key of a ``Literal`` type may have, in quotes."""
    return [f'"{value}"' for value in get_args(field.annotation) if isinstance(value, str)]


def _key_table(fields: dict[str, Any]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        text = field.description or ("selects these keys" if name == "kind" else "")
        rows.append(f"| `{name}` | {_value(field)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def _value(field: Any) -> str:
    if field.is_required():
        return " or ".join(f"`{choice}`" for choice in _choices(field)) or "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", {}, ()) or isinstance(value, SecretStr):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _metrics() -> Iterator[str]:
    rows = ["| metric | kind | labels | what |", "| --- | --- | --- | --- |"]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels) or "–"
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    yield "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
