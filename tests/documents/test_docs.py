"""The documents are true: commands run or are parsed, and keys, links, settings and examples are real."""

import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import pytest
import typer

from daemon.admission.submission import submit
from daemon.cli.main import make_cli
from daemon.cli.reference import reference
from daemon.core.config.feeds import FEED_SECTIONS, AdmissionConfig
from daemon.core.config.settings import known_keys, load_config
from daemon.core.corrections import parse_item
from daemon.core.ledger.ledger import Ledger
from daemon.feeds.base import _KINDS, Feed
from tests.installation import Installation
from tests.ledgers import apply_waiting, statement

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
GUIDES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "deploy" / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != REFERENCE),
]
RUNBOOKS = sorted((ROOT / "monitoring" / "runbooks").glob("*.md"))
PAGES = [*GUIDES, *RUNBOOKS]

MODEL = "needs the language model, which this test does without"
BENCH = "takes minutes to hours; tests/workers/bench runs the benches in small"
TENSORS = "needs tensors, which this installation lacks; tests/crash/test_damage.py backs up and restores"
ENDLESS = "runs until it is stopped"
STAGE = "a stage of deploy/test.sh, which runs these tests"
ROOT_ONLY = "changes the machine it runs on; tests/documents/test_deploy.py checks the files that it uses"
ENGINE = "needs a container engine or a cluster; tests/documents/test_deploy.py checks the files that it uses"
SERVER = "talks to a running server; the tests of its routes post the same"
NOT_RUN = MappingProxyType(
    {
        "sh deploy/quickstart.sh": "downloads a model and edits it for minutes; run by hand before a release",
        "sh deploy/test.sh": "runs these tests",
        ". .venv/bin/activate": "made by deploy/install.sh",
        "errata ask": f"{MODEL}; tests/e2e/test_main_path.py runs it",
        "errata export": f"{MODEL}; tests/workers/publishing runs it",
        "errata rebuild": f"{MODEL}; tests/crash/test_damage.py rebuilds head",
        "errata probe": f"{MODEL}; tests/numerics/test_probes.py runs the probes",
        "errata backup": TENSORS,
        "errata restore": TENSORS,
        "errata run": f"{ENDLESS}; tests/e2e starts it",
        "errata serve": f"{ENDLESS}; tests/workers/serving tests its routes",
        "errata top": f"{ENDLESS}; tests/daemon/cli/test_watch.py runs it once",
        "errata bench": BENCH,
        "errata locate": "takes minutes; tests/workers/locate runs it in small",
        "errata feeds test wikidata": "asks Wikidata; tests/daemon/feeds does it with a server of its own",
        "curl": SERVER,
        "python -m tests.bench": "takes minutes to hours, for developers",
        "python -m pytest": STAGE,
        "python -m pip wheel": "fetches the build system; deploy/test.sh builds the project too",
        "ruff": STAGE,
        "lint-imports": STAGE,
        "mypy": STAGE,
        "systemctl": ROOT_ONLY,
        "useradd": ROOT_ONLY,
        "python3 -m venv /opt/errata": ROOT_ONLY,
        "/opt/errata/bin/pip": ROOT_ONLY,
        "install": ROOT_ONLY,
        "cp deploy/": ROOT_ONLY,
        "openssl": ROOT_ONLY,
        "docker compose": ENGINE,
        "kubectl": ENGINE,
    }
)
"""Beginnings of commands that no test here runs, each with its reason."""
FEED, REVISION, INCIDENT, ENTRY = "sample", "3", "1", "3"
"""What the installation of this test has: a feed, the revision that degraded, its incident, a held value."""
MADE = {"deploy/.env", "deploy/errata.toml", "deploy/api.token"}
"""Files that an operator makes by the commands of a page."""
MAY_FIND_SOMETHING = ("errata doctor", "errata scrub")
"""Commands whose exit status says what they found: this installation has no worker and no tensors."""


def label(page: Path) -> str:
    """What a test of a page is called by."""
    return "/".join(page.relative_to(ROOT).parts)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands(page: Path) -> Iterator[list[str]]:
    """Each command of the page's shell blocks as a list of words.

    Continued lines are joined; comments and redirections are dropped.
    """
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in {";", "&&", "||", "|"}:
                if words:
                    yield words[: words.index(">")] if ">" in words else words
                words = []
            else:
                words.append(word)


def reason_not_run(words: list[str]) -> str | None:
    """The entry of NOT_RUN that a command begins with."""
    return next((start for start in NOT_RUN if " ".join(words).startswith(start)), None)


def filled(words: list[str]) -> list[str]:
    """The command with values in place of NAME, REV and ID."""
    number = ENTRY if {"quarantine", "approve"} & set(words) else INCIDENT
    return [{"NAME": FEED, "REV": REVISION, "ID": number}.get(word, word) for word in words]


@cache
def program() -> Any:
    """Return the command errata, made once."""
    return typer.main.get_command(make_cli())


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[tuple[Installation, Ledger]]:
    """An installation with a story: a rollback, a waiting correction, refused lines, and a held value."""
    installation = Installation(tmp_path)
    ledger = installation.tell_story()
    submit(ledger, statement("Fiji", "Suva"), "tester")  # was rolled back, so it is held as entry 3
    yield installation, ledger
    ledger.close()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, installed: tuple[Installation, Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation, ledger = installed
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if reason_not_run(words) is not None:
            continue
        typed = filled(words)
        if words[0] != "errata":
            subprocess.run(typed, check=True, capture_output=True)
            continue
        result = installation.errata(*typed[1:])
        allowed = {0, 1} if " ".join(words).startswith(MAY_FIND_SOMETHING) else {0}
        assert result.exit_code in allowed, f"{shlex.join(words)}: {result.output}"
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        apply_waiting(ledger)  # in place of the worker


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    used = {reason_not_run(words) for page in PAGES for words in commands(page)}
    assert set(NOT_RUN) <= used, set(NOT_RUN) - used


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_are_ones_that_the_programs_know(page: Path) -> None:
    """Run or not: commands and options of errata are parsed, modules and files of the project exist."""
    for words in commands(page):
        if words[0] == "errata":
            parse(filled(words)[1:])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, words
        named = {word for word in words if word.startswith(("deploy/", "tests/", "docs/"))}
        assert [file for file in named - MADE if not list(ROOT.glob(file))] == [], label(page)


def parse(words: list[str]) -> None:
    """Let click read a command line without running it.

    Raises:
        click.UsageError: no such command or option, or an argument is missing.
    """
    command = program()
    context = click.Context(command)
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, words, parent=context).close()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_in_the_text_exist(page: Path) -> None:
    for typed in re.findall(r"`errata((?: [^`\s]+)+)`", page.read_text(encoding="utf-8")):
        command, words = program(), typed.split()
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {text for parameter in command.params for text in parameter.opts} | {"--help"}
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"{label(page)}: errata{typed}"


@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(page, "toml")], ids=label)
def test_settings_that_a_page_shows_are_accepted(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        load_config(file)


def test_every_kind_of_feed_has_an_example() -> None:
    text = "\n".join(blocks(ROOT / "docs" / "feeds.md", "toml"))
    assert set(re.findall(r'kind = "(\w+)"', text)) == set(_KINDS)


def test_every_key_of_a_feed_and_of_admission_is_on_its_page() -> None:
    named = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "feeds.md").read_text(encoding="utf-8")))
    for section in (*FEED_SECTIONS, AdmissionConfig):
        assert set(section.model_fields) <= named, section.__name__


def test_the_correction_that_the_readme_shows_is_one() -> None:
    (shown,) = blocks(ROOT / "README.md", "json")
    assert parse_item(shown).subject == "Bulgaria"
    assert len(shown.splitlines()) == len(json.loads(shown)) + 2, "each field on a line of its own"


def test_the_feed_that_contributors_are_shown_works() -> None:
    (shown,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(shown, "CONTRIBUTING.md", "exec"), names)
    feed = make_from(names)
    first = feed.pull({}, 10)
    assert parse_item(first.items[0].raw).subject == "Greenwich"
    assert feed.pull(first.cursor, 10).cursor == {"number": 2}


def make_from(names: dict[str, Any]) -> Feed:
    """The shown feed from its shown section."""
    config = names["ClockFeedConfig"](kind="clock", name="clock")
    feed: Feed = names["ClockFeed"](config)
    return feed


def test_the_reference_is_what_the_code_says() -> None:
    written = REFERENCE.read_text(encoding="utf-8")
    assert written == reference(), "python -m daemon.cli.reference > docs/reference.md"


def test_it_has_every_command_and_every_key() -> None:
    page = reference()
    group = typer.main.get_command(make_cli())
    for name in group.commands:  # type: ignore[attr-defined]
        assert f"`errata {name}" in page
    for key in set(known_keys()) - {"feeds", "consumers"}:
        assert f"`{key.rsplit('.', 1)[-1]}`" in page
    assert "[[consumers]]" in page
    for kind in ("jsonl", "http", "rss", "wikidata", "redis_stream", "webhook"):
        assert f'### `[[feeds]] kind = "{kind}"`' in page


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_keys_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = {key.split(".")[0] for key in known_keys() if "." in key}
    named = [key for key in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if key.split(".")[0] in sections]
    assert set(named) <= set(known_keys()), set(named) - set(known_keys())
    variables = set(re.findall(r"\bERRATA_[A-Z]+__[A-Z_]+", text))
    known = {"ERRATA_" + key.upper().replace(".", "__") for key in known_keys()}
    assert variables <= known | {"ERRATA_SECTION__KEY"}
