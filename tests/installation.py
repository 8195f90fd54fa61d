"""A small installation for tests of commands, API and views."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from daemon.admission.admit import admit
from daemon.admission.submission import submit
from daemon.cli.main import make_cli
from daemon.core.config.settings import Config, load_config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.names import DEFAULT_MODEL, ProbeResult
from daemon.watch.judge import judge
from tests.ledgers import apply_waiting, found, items, make_batch, propose, statement, take_lease

STAGES = {"load": 0.5, "write": 2.25, "verify": 0.125}
NORMS = {"3": 0.02, "8": 0.04}


def probes(efficacy: float = 1.0, perplexity: float = 1.01) -> list[ProbeRow]:
    """Return measurements after an edit, with a floor of 0.9 and a ceiling of 1.1."""
    good = ProbeResult.OK if efficacy >= 0.9 else ProbeResult.DEGRADED
    cheap = ProbeResult.OK if perplexity <= 1.1 else ProbeResult.DEGRADED
    return [
        ProbeRow("efficacy", 1, good, efficacy, 0.9, 4, 0.5),
        ProbeRow("perplexity_ratio", 1, cheap, perplexity, 1.1, 20, 0.25),
    ]


def edit(ledger: Ledger, *said: dict[str, Any], measured: Sequence[ProbeRow] | None = None) -> int:
    """Submit statements and commit all waiting ones as a revision with probes, stages and norms."""
    for one in said:
        submit(ledger, one, "tester")
    batch = make_batch(ledger)
    assert batch is not None
    proposal = replace(
        propose(ledger, batch), probes=probes() if measured is None else measured, stages=STAGES, norms=NORMS
    )
    return ledger.commit(take_lease(ledger), proposal)


class Installation:
    """A folder with ``errata.toml`` and, after ``open``, a ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "errata.toml"
        self.feed = folder / "feed.jsonl"
        self.feed.touch()
        self.write()

    def write(self, *lines: str) -> None:
        """Write a configuration with the feed ``sample`` after the given lines."""
        feed = f'[[feeds]]\nkind = "jsonl"\nname = "sample"\npath = "{self.feed}"\n'
        self.file.write_text("\n".join([*lines, feed]), encoding="utf-8")

    @property
    def config(self) -> Config:
        """The configuration in the file."""
        return load_config(self.file)

    def open(self) -> Ledger:
        """Open the ledger with revision 0."""
        ledger = Ledger.open(self.config.ledger_url)
        found(ledger)
        return ledger

    def tell_story(self) -> Ledger:
        """Open a ledger with two good edits, one rolled back, one waiting and two refused lines.

        Revisions: 0 base, 1 Peru and Chad, 2 Peru revised, 3 Fiji (degraded), 4 rollback to 2.
        """
        file = self.config.data_dir / "ledger.sqlite"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_story())
        return Ledger.open(self.config.ledger_url)

    def errata(self, *arguments: str, text: str | bytes | None = None) -> Any:
        """Run a command in this process, with stdout not a terminal."""
        runner = CliRunner()
        return runner.invoke(make_cli(), ["--config", str(self.file), *arguments], input=text)

    def errata_json(self, *arguments: str, text: str | bytes | None = None) -> Any:
        """Run a command that must succeed and return the JSON document that it prints."""
        result = self.errata(*arguments, "--json", text=text)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def write_quietly(ledger: Ledger, *said: dict[str, Any], model: str = DEFAULT_MODEL) -> int | None:
    """Submit statements and commit all waiting ones as a revision without probes."""
    for one in said:
        submit(ledger, one, "tester")
    return apply_waiting(ledger, model=model)


@cache
def _story() -> bytes:
    """Return the file of the ledger of ``Installation.tell_story``, made once per process."""
    with TemporaryDirectory() as folder:
        installation = Installation(Path(folder))
        ledger = installation.open()
        for said, perplexity in (
            ([statement("Peru", "Lima"), statement("Chad", "Abéché")], 1.01),
            ([statement("Peru", "Cusco")], 1.01),
            ([statement("Fiji", "Suva")], 2.0),
        ):
            edit(ledger, *said, measured=probes(perplexity=perplexity))
            judge(ledger, installation.config)
        submit(ledger, statement("Mali", "Bamako"), "tester")
        with ledger.write() as connection:
            lines = [*items({"subject": "Oman"}), *items("no object")]
            admit(connection, ledger.clock.now(), "sample", 50, lines)
        ledger.close()  # closing the last connection moves the write-ahead log into the file
        return (installation.config.data_dir / "ledger.sqlite").read_bytes()
