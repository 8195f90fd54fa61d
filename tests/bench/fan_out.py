"""Measure the speed-up by target workers.

    python -m tests.bench.fan_out MODEL_FOLDER [FACTS] [WORKERS ...]

Starts a private Redis and for each number in WORKERS as many ``errata worker --targets`` of one thread each,
which find the targets of the same batch. With 0 this process finds them itself.
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
from daemon.core.config.settings import Config, load_config
from daemon.embedded.redis_server import PrivateRedis
from tests.house import CORPUS
from workers.editing.prompts import EditRequest
from workers.editing.statistics import make_prefixes
from workers.editing.targets import Finder, find_targets
from workers.models.open import open_model
from workers.queue.assemble import chosen_recipe, finder

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample" / "corrections.jsonl"


def main(model: str, count: int, sizes: list[int]) -> None:
    """Print for each number of workers the time to find all targets at the first layer."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, PrivateRedis(Path(place) / "redis") as server:
        config = _config(Path(place), model, server.celery_url, chunk=4)
        lm = open_model(config)
        recipe, prefixes, requests = chosen_recipe(config, lm), make_prefixes(lm), _facts(count)
        print("workers   seconds   times faster", flush=True)
        first = 0.0
        for size in sizes:
            seek: Finder = find_targets
            with _workers(config, Path(place), size):
                if size:  # target workers load their model on the first job
                    warm = _config(Path(place), model, server.celery_url, chunk=1)
                    finder(warm)(lm, requests[: 2 * size], recipe.layers[0], recipe, prefixes)
                    seek = finder(config)
                began = time.monotonic()
                seek(lm, requests, recipe.layers[0], recipe, prefixes)
                took = time.monotonic() - began
            first = first or took
            print(f"{size:<9} {took:<9.2f} {first / took:.2f}", flush=True)


def _config(place: Path, model: str, redis: str, *, chunk: int) -> Config:
    settings = {
        "redis_url": redis,
        "model": {"path": model, "device": "cpu", "threads": 1, "corpus": str(CORPUS)},
        "edit": {"fan_out": True, "target_chunk": chunk},
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
