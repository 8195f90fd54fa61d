"""The commands ``ask`` and ``serve``, which generate text with the model."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.core.command import Json, load, needs
from daemon.core.names import ProcessRole, Role

_LOOK_SECONDS = 1.0  # between two looks whether the server still runs


def add_commands(app: typer.Typer) -> None:
    """Add the commands to ``errata``."""
    app.command("ask")(ask)
    app.command("serve")(serve)


@needs(Role.READ)
def ask(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="text to continue")],
    at: Annotated[str | None, typer.Option(help="revision (default: head)")] = None,
    base: Annotated[bool, typer.Option("--base", help="ask the unedited model")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="show the unedited model's answer beside it")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="use the model's chat template")] = False,
    tokens: Annotated[int, typer.Option(min=1, max=512, help="most tokens of the answer")] = 24,
    as_json: Json = False,
) -> None:
    """Ask the model at head, at another revision, or as it was before any edit, and stream the answer.

    Examples: errata ask "The capital of France is" | errata ask --compare "..." | errata ask --at 3 "..."
    """
    from daemon.core.errors import ConfigError
    from workers.serving.generation import Sampling, encode, encode_chat
    from workers.serving.side_by_side import Answerer

    if base and (at is not None or compare):
        raise ConfigError("--base cannot be used with --at or --compare", hint="--base is the same as --at 0")
    answerer = Answerer(load(context), ["0"] if base else ["0", at] if compare else [at])
    model = answerer.model
    ids = encode_chat(model, [{"role": "user", "content": prompt}]) if chat else encode(model, prompt)
    sampling = Sampling(tokens, temperature=0, stop=() if chat else ("\n",), skip="\n")
    answers = answerer.answers(ids, sampling)
    if as_json:
        texts = [(number, "".join(pieces)) for number, pieces in answers]
        document = {"revision": texts[-1][0], "prompt": prompt, "answer": texts[-1][1]}
        typer.echo(json.dumps(document | ({"base": texts[0][1]} if compare else {}), ensure_ascii=False))
    elif compare:
        _side_by_side(prompt, answers)
    else:
        if not chat:
            typer.echo(prompt, nl=False)
        for piece in answers[0][1]:
            typer.echo(piece, nl=False)
        typer.echo()


def serve(context: typer.Context) -> None:
    """Serve OpenAI's completion routes from the live revision, and follow it without dropping a request.

    Example: errata serve
    """
    from daemon.core.ending import Ending
    from daemon.core.http_server import HttpServer
    from daemon.core.ledger.heartbeats import ENDING, Heart
    from daemon.core.ledger.ledger import Ledger
    from daemon.core.log import configure_logging
    from workers.models.open import open_model
    from workers.revisions.store import Store
    from workers.serving.openai import make_app
    from workers.serving.replica import Replica

    config = load(context)
    configure_logging(config.log.level, json_lines=config.log.json_lines)
    ledger = Ledger.open_existing(config.ledger_url)
    role, seconds = ProcessRole.COMPLETIONS, config.schedule.heartbeat_seconds
    with Heart(ledger, config.model.name, role, seconds) as heart:
        ending = Ending(on_ask=partial(setattr, heart, "state", ENDING))
        ending.listen()
        replica = Replica(ledger, Store(config.store_path), open_model(config), config)
        replica.start()
        server = HttpServer(make_app(replica, config), config.serve.host, config.serve.port)
        server.start()
        heart.state = "serves"
        while server.alive and not ending.asked.wait(_LOOK_SECONDS):
            pass
        replica.stop()
        server.stop()


def _side_by_side(prompt: str, answers: list[tuple[int, Iterator[str]]]) -> None:
    """Print both answers side by side, token by token.

    In a pipe each answer is one line, printed when both are complete.
    """
    titles = ["base" if number == 0 else f"revision {number}" for number, _ in answers]
    texts = [""] * len(answers)
    sides = [pieces for _, pieces in answers]

    def table() -> Table:
        shown = Table(*titles, title=Text(prompt), expand=True)
        shown.add_row(*(Text(text) for text in texts))
        return shown

    live = Live(table(), console=Console(), auto_refresh=False) if sys.stdout.isatty() else None
    open_sides = set(range(len(sides)))
    with live or nullcontext():
        while open_sides:
            for side in sorted(open_sides):
                piece = next(sides[side], None)
                if piece is None:
                    open_sides.discard(side)
                else:
                    texts[side] += piece
            if live:
                live.update(table(), refresh=True)
    if not live:
        for title, text in zip(titles, texts, strict=True):
            typer.echo(f"{title}: {prompt}{text}")
