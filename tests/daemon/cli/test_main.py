"""The command line explains itself, reports errors in two lines, and takes commands of other packages."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from daemon.cli import main as cli
from daemon.cli.main import make_cli
from tests.installation import Installation

ROOT = Path(__file__).parents[3]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be typed, with the words that lead to it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(make_cli())))


def test_the_commands_of_the_design_are_there() -> None:
    look, act = (
        "status facts revisions show incidents metrics doctor version",
        "run submit retract rollback pause resume",
    )
    assert {(name,) for name in f"{look} {act}".split()} <= ALL.keys()
    groups = {("quarantine", n) for n in ("list", "release", "drop")} | {
        ("config", n) for n in ("show", "path")
    }
    assert groups | {("audit", "list"), ("audit", "verify")} <= ALL.keys()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(make_cli(), [*path, "--help"])
    words = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "Example" in words
    assert f"errata {' '.join(path)}" in words.split("Example", 1)[1]
    for parameter in ALL[path].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_command_that_lists_can_print_json(path: tuple[str, ...]) -> None:
    without = {("run",), ("metrics",), ("prepare",), ("tour",), ("worker",), ("serve",), ("completion",)}
    options = {option for parameter in ALL[path].params for option in parameter.opts}
    assert ("--json" in options) is (path not in without)


def test_the_help_names_the_exit_statuses() -> None:
    text = " ".join(CliRunner().invoke(make_cli(), ["--help"]).stdout.split())
    for piece in (
        "0 done",
        "1 refused",
        "2 wrong usage",
        "3 a service",
        "4 the ledger",
        "5 no such",
        "70 a bug",
    ):
        assert piece in text
    assert "--install-completion" in text


def test_an_unknown_key_is_refused_with_a_suggestion(installation: Installation) -> None:
    installation.write("[edit]\nbatch_sise = 3")
    result = installation.errata("status")
    assert result.exit_code == 2
    assert "unknown key edit.batch_sise (did you mean edit.batch_size?)" in result.stderr
    assert "Traceback" not in result.output


def test_a_configuration_that_is_not_there(installation: Installation) -> None:
    installation.file.unlink()
    result = installation.errata("status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no configuration file at ")


def test_without_a_ledger_nothing_is_created(installation: Installation) -> None:
    for command in (
        ["status"],
        ["submit", "--subject", "A", "--prompt", "A is", "--object", "b"],
        ["metrics"],
    ):
        result = installation.errata(*command)
        assert result.exit_code == 4
        assert "there is no ledger" in result.stderr
        assert "errata run creates it" in result.stderr
    assert not installation.config.data_dir.exists()


def test_a_damaged_ledger_is_refused(installation: Installation) -> None:
    file = installation.config.data_dir / "ledger.sqlite"
    file.parent.mkdir()
    file.write_bytes(b"no database " * 1000)
    result = installation.errata("status")
    assert result.exit_code == 4
    assert "damaged" in result.stderr
    assert "backup" in result.stderr


def test_debug_shows_where_an_error_comes_from(installation: Installation) -> None:
    plain = installation.errata("status")
    shown = CliRunner().invoke(make_cli(), ["--debug", "--config", str(installation.file), "status"])
    assert "Traceback" not in plain.stderr
    assert "Traceback" in shown.stderr
    assert plain.exit_code == shown.exit_code == 4


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["errata", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_bug_is_two_lines_and_status_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise RuntimeError("oh\x1b[31m\x07\r")

    monkeypatch.setattr("daemon.core.version.version", broken)
    assert run_main(monkeypatch, "version") == 70
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 2)
    assert "error: unexpected RuntimeError: oh" in shown.err
    assert not {"\x1b", "\x07", "\r"} & set(shown.err), "an error's text cannot steer the terminal"
    assert run_main(monkeypatch, "--debug", "version") == 70
    assert "Traceback" in capsys.readouterr().err


def test_wrong_usage_is_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "show") == 2
    assert run_main(monkeypatch, "no-such-command") == 2
    assert "Traceback" not in capsys.readouterr().err


class Entry:
    """An entry point of another package."""

    def __init__(self, name: str, add: Any) -> None:
        self.name, self._add = name, add

    def load(self) -> Any:
        if isinstance(self._add, Exception):
            raise self._add
        return self._add


def test_a_foreign_command_joins_and_a_broken_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: typer.Typer) -> None:
        app.command("hello")(lambda: typer.echo("hello"))

    entries = [Entry("broken", ImportError("no torch\nhere")), Entry("good", add)]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries if group == "errata.commands" else [])
    app = make_cli()
    assert CliRunner().invoke(app, ["hello"]).stdout == "hello\n"
    assert CliRunner().invoke(app, ["version"]).exit_code == 0


def test_the_warning_about_a_broken_one_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry("broken", ImportError("no torch"))])
    make_cli()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "warning: the commands of 'broken' are missing: ImportError: no torch\n"


def test_version_as_text_and_json(installation: Installation) -> None:
    assert installation.errata("version").stdout.startswith("errata ")
    assert set(installation.errata_json("version")) == {"version"}


def test_run_hands_the_configuration_on(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("daemon.core.log.configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(
        "daemon.embedded.run.run_command",
        lambda config, file, once, with_model: asked.append((config, file, once, with_model)),
    )
    assert installation.errata("run", "--once").exit_code == 0
    assert installation.errata("run", "--no-worker").exit_code == 0
    name = asked[0][0].feeds[0].name
    assert [(name, *one[1:]) for one in asked] == [
        ("sample", installation.file, True, True),
        ("sample", installation.file, False, False),
    ]


def test_help_starts_without_what_only_commands_need() -> None:
    """The slow imports are made by the commands that need them."""
    code = (
        "import sys; sys.argv = ['errata', '--help']\n"
        "from importlib import metadata; metadata.entry_points = lambda group: []\n"
        "from daemon.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "slow = set('sqlalchemy alembic fastapi celery redis pydantic torch prometheus_client'.split())\n"
        "sys.exit(','.join(sorted(slow & sys.modules.keys())) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"
    assert "Usage: errata" in done.stdout


def test_a_pipe_that_closes_is_no_bug(installation: Installation) -> None:
    installation.tell_story().close()
    line = f"{sys.executable} -m daemon.cli --config {installation.file} config show | head -n 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr
