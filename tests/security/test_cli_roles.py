"""Which commands each role may run, and how a token changes the role."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from daemon.cli.main import make_cli
from daemon.cli.reference import commands
from daemon.core.command import needed_role
from daemon.core.ledger.ledger import Ledger
from daemon.core.names import Role
from tests.installation import Installation
from tests.ledgers import held

TOKENS = {Role.READ: "r" * 32, Role.SUBMIT: "s" * 32, Role.OPERATE: "o" * 32}
FILES = {Role.READ: "read_token_file", Role.SUBMIT: "submit_token_file", Role.OPERATE: "token_file"}
SUBMIT = (
    "submit", "--subject", "Togo", "--prompt", "The capital of Togo is", "--object", "Lomé",
    "--source", "gazette",
)  # fmt: skip
RETRACT = ("retract", "Peru", "--reason", "demo")


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = installation.tell_story()
    yield opened
    opened.close()


def allow(installation: Installation, role: Role) -> dict[Role, Path]:
    """Give the caller ``role``, and return the files of the tokens that raise it."""
    files = {one: installation.folder / f"{one}.token" for one in Role}
    for one, file in files.items():
        file.write_text(TOKENS[one] + "\n")
    api = [f'{FILES[one]} = "{file}"' for one, file in files.items()]
    installation.write("[cli]", f'role = "{role}"', "[api]", *api)
    return files


def test_who_may_only_look_changes_nothing(installation: Installation, ledger: Ledger) -> None:
    allow(installation, Role.READ)
    before = held(ledger)
    for command in (
        SUBMIT,
        RETRACT,
        ("rollback", "--to", "0", "--reason", "demo"),
        ("incidents", "--close", "1"),
    ):
        result = installation.errata(*command)
        assert result.exit_code == 1, command
        assert "needs the role" in result.stderr and "yours is read" in result.stderr
    assert held(ledger) == before
    assert installation.errata("status").exit_code == 0
    assert installation.errata("incidents").exit_code == 0


def test_who_may_submit_takes_nothing_back(installation: Installation, ledger: Ledger) -> None:
    allow(installation, Role.SUBMIT)
    assert installation.errata(*SUBMIT).exit_code == 0
    assert installation.errata(*RETRACT).exit_code == 1


def test_a_token_lifts_the_role_and_a_wrong_one_does_not(
    installation: Installation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = allow(installation, Role.READ)
    monkeypatch.setenv("ERRATA_TOKEN_FILE", str(files[Role.SUBMIT]))
    assert installation.errata(*SUBMIT).exit_code == 0
    assert installation.errata(*RETRACT).exit_code == 1
    monkeypatch.setenv("ERRATA_TOKEN_FILE", str(files[Role.OPERATE]))
    assert installation.errata(*RETRACT).exit_code == 0
    wrong = installation.folder / "wrong.token"
    wrong.write_text("x" * 32)
    for file in (wrong, installation.folder / "none.token"):
        monkeypatch.setenv("ERRATA_TOKEN_FILE", str(file))
        assert installation.errata("status").exit_code == 2, "a token that is none is a mistake, not a guest"


def test_a_token_may_lower_the_role(
    installation: Installation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = allow(installation, Role.OPERATE)
    monkeypatch.setenv("ERRATA_TOKEN_FILE", str(files[Role.READ]))
    assert installation.errata(*RETRACT).exit_code == 1


def test_what_needs_less_than_everything_is_named_and_is_there() -> None:
    """A new command needs the role operate until its decorator states another one."""
    roles = {
        " ".join(path): needed_role(command) for path, command in commands(typer.main.get_command(make_cli()))
    }
    read = {name for name, role in roles.items() if role is Role.READ and not name.startswith("bench ")}
    assert read == {
        "status", "facts", "revisions", "show", "incidents", "metrics", "diff", "top", "why", "doctor",
        "completion", "recipes", "ask", "locate", "audit list", "audit verify", "quarantine list",
        "feeds list", "feeds test", "config show", "config path",
    }  # fmt: skip
    assert {name for name, role in roles.items() if role is Role.SUBMIT} == {"submit"}
    assert {role for name, role in roles.items() if name.startswith("bench ")} == {Role.READ}
    assert needed_role(typer.main.get_command(make_new_command())) is Role.OPERATE


def make_new_command() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def something_new() -> None:
        pass

    return app
