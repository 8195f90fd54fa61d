"""Facts of CounterFact and zsRE, read from the standard files."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from daemon.core.errors import ConfigError
from workers.editing.prompts import EditRequest

HUB_FILES = {
    "counterfact": ("azhx/counterfact", "data/test-00000-of-00001-bacb83500fca49a9.parquet"),
    "zsre": ("wangzn2001/Model_Editing_Hurt", "training-data/zsre_mend_eval.json"),
}
"""Data set and file: 2,191 facts of CounterFact, and zsRE as MEND and ROME evaluate on it."""


@dataclass(frozen=True)
class BenchFact:
    """One fact to write, what was true before, a paraphrase and one prompt of the neighborhood."""

    request: EditRequest
    true: str
    paraphrase: str
    neighbor: str
    neighbor_true: str


def load_facts(name: str, n: int, seed: int | None, path: Path | None) -> list[BenchFact]:
    """Return ``n`` facts of different subjects, the file's first or, with ``seed``, drawn from all of it.

    Raises ConfigError if the file is missing, unreadable or too short.
    """
    records = list(_records(_find(name, path)))
    if seed is not None:
        random.Random(seed).shuffle(records)
    make = _counterfact if name == "counterfact" else _zsre
    facts: dict[str, BenchFact] = {}
    for number, record in enumerate(records):
        fact = make(record, number)
        if fact is not None and fact.request.subject not in facts:
            facts[fact.request.subject] = fact
        if len(facts) == n:
            return list(facts.values())
    raise ConfigError(f"{name} has {len(facts)} facts of different subjects, {n} were asked for")


def _find(name: str, path: Path | None) -> Path:
    """Return the named file, the one beside the checkout, or the hub's."""
    if path is not None:
        return path
    near = Path("..") / "shared" / "data" / f"{name}.jsonl"
    if near.is_file():
        return near
    from huggingface_hub import hf_hub_download

    repository, file = HUB_FILES[name]
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} is not beside the checkout, and {file} of the hub's {repository} cannot be had: "
            f"{str(error).splitlines()[0]}",
            hint="go online once, or name the data set's file by --data",
        ) from error


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
            return
        text = path.read_text(encoding="utf-8")
        whole = text.lstrip().startswith("[")
        yield from json.loads(text) if whole else (json.loads(line) for line in text.splitlines() if line)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    """Return all rows of a parquet file."""
    try:
        table = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{path.name} is a parquet file", hint="pip install 'errata[bench]' brings pyarrow"
        ) from error
    rows: list[Mapping[str, Any]] = table.read_table(path).to_pylist()
    return rows


def _counterfact(record: Mapping[str, Any], number: int) -> BenchFact | None:
    """Make a fact of a flat record, or of the published form with its lists."""
    flat, rewrite = record, record.get("requested_rewrite")
    if rewrite is not None:
        flat = {
            "subject": rewrite["subject"],
            "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),
            "target_new": rewrite["target_new"]["str"],
            "target_true": rewrite["target_true"]["str"],
            "paraphrase": record["paraphrase_prompts"][0],
            "neighborhood_prompt": record["neighborhood_prompts"][0],
            "neighborhood_target": rewrite["target_true"]["str"],
        }
    if flat["subject"] not in flat["prompt"]:
        return None
    request = EditRequest(str(number), flat["subject"], flat["prompt"], flat["target_new"])
    rest = ("target_true", "paraphrase", "neighborhood_prompt", "neighborhood_target")
    return BenchFact(request, *(flat[name] for name in rest))


def _zsre(record: Mapping[str, Any], number: int) -> BenchFact | None:
    """Make a fact of a record of questions. The neighborhood is an unrelated question."""
    if record["subject"] not in record["src"]:
        return None
    request = EditRequest(str(number), record["subject"], record["src"], record["alt"])
    neighbor = record["loc"].removeprefix("nq question: ") + "?"
    return BenchFact(request, record["answers"][0], record["rephrase"], neighbor, record["loc_ans"])
