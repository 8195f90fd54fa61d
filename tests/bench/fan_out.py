"""Speed-up by target workers: ``python -m tests.bench.fan_out MODEL_FOLDER [FACTS] [WORKERS ...]``.

Starts a private Redis and that many ``errata worker --targets`` processes of one thread each, and writes the
same batch with each number of them; with 0 the editing process seeks the targets itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w
import torch

from daemon.core.broker import celery_app
from daemon.core.config import Config, load_config
from daemon.redis_server import PrivateRedis
from tests.house import CORPUS
from workers.assemble import finder, make_editor
from workers.editing.prompts import EditRequest

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample" / "corrections.jsonl"


def main(model: str, count: int, sizes: list[int]) -> None:
    """Print one row a number of workers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, PrivateRedis(Path(place) / "redis") as server:
        editor = make_editor(_config(Path(place), model, server.celery_url, fan_out=False))
        requests = _facts(count)
        clean = editor.snapshot()
        print("workers   targets s   batch s")
        for size in sizes:
            config = _config(Path(place), model, server.celery_url, fan_out=size > 0)
            editor._find = finder(config)  # the bench sets what the worker's configuration sets
            with _workers(config, Path(place), size):
                if size:  # helpers load their model on the first job
                    editor.write(requests[: 4 * size])
                    editor.rollback_to(clean)
                prefixes, began = editor.statistics.prefixes, time.monotonic()
                editor._find(editor.model, requests, editor.layers[0], editor.recipe, prefixes)
                targets = time.monotonic() - began
                editor.write(requests)
                print(f"{size:<9} {targets:<11.2f} {time.monotonic() - began - targets:.2f}", flush=True)
                editor.rollback_to(clean)


def _config(place: Path, model: str, redis: str, *, fan_out: bool) -> Config:
    settings = {
        "redis_url": redis,
        "model": {"path": model, "device": "cpu", "threads": 1, "corpus": str(CORPUS)},
        "edit": {"fan_out": fan_out},
    }
    file = place / "errata.toml"
    file.write_text(tomli_w.dumps(settings))
    return load_config(file)


@contextmanager
def _workers(config: Config, place: Path, size: int) -> Iterator[None]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ERRATA_CONFIG": str(place / "errata.toml")}
    command = [sys.executable, "-m", "daemon.cli", "worker", "--targets"]
    with (place / "workers.log").open("ab") as log:
        started = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for _ in range(size)]
    try:
        deadline = time.monotonic() + 60
        while size and len(celery_app(config).control.ping(timeout=1.0)) < size:
            if time.monotonic() > deadline:
                raise SystemExit((place / "workers.log").read_text()[-2000:])
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def _facts(count: int) -> list[EditRequest]:
    told = []
    for line in SAMPLE.read_text().splitlines():
        with suppress(ValueError):  # the sample has lines that admission refuses
            row = json.loads(line)
            if row.get("object") and row.get("subject", "?") in row.get("prompt", ""):
                told.append(row)
    return [EditRequest(str(i), r["subject"], r["prompt"], r["object"]) for i, r in enumerate(told[:count])]


if __name__ == "__main__":
    chosen = [int(text) for text in sys.argv[3:]] or [0, 1, 2]
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16, chosen)
