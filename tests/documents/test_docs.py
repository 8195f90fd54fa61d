"""The documents are true: the reference is what the code says, commands and keys that README names exist."""

import re
from pathlib import Path

import pytest
import typer

from daemon.cli.main import make_cli
from daemon.cli.reference import reference
from daemon.core.config.settings import known_keys

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", ROOT / "ARCHITECTURE.md"]


def test_the_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: "/".join(path.relative_to(ROOT).parts))
def test_commands_that_a_page_names_exist(page: Path) -> None:
    group = typer.main.get_command(make_cli())
    text = page.read_text(encoding="utf-8")
    shells = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    typed = re.findall(r"(?:^|[;|&(]\s*)errata((?: [^\s#`]+)+)", shells, re.M)
    typed += re.findall(r"`errata((?: [^`\s]+)+)`", text)
    assert typed or page.name == "ARCHITECTURE.md"
    for words in (one.split() for one in typed):
        command = group
        while words and hasattr(command, "commands"):
            if words[0].startswith("-"):
                words.pop(0)
                continue
            name = words.pop(0).split("|")[0]
            assert name in command.commands, f"{page.name}: errata {name}"
            command = command.commands[name]
        options = {text for parameter in command.params for text in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{page.name}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: "/".join(path.relative_to(ROOT).parts))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: "/".join(path.relative_to(ROOT).parts))
def test_keys_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = {key.split(".")[0] for key in known_keys() if "." in key}
    named = [key for key in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if key.split(".")[0] in sections]
    assert set(named) <= set(known_keys()), set(named) - set(known_keys())
    variables = set(re.findall(r"\bERRATA_[A-Z]+__[A-Z_]+", text))
    known = {"ERRATA_" + key.upper().replace(".", "__") for key in known_keys()}
    assert variables <= known | {"ERRATA_SECTION__KEY"}
