"""Completions over HTTP: OpenAI's forms, and revisions that change under load without a request lost."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.conftest import is_full
from tests.ledgers import statement
from tests.tinymodel import TinyHouse
from workers.editing.model import load_model
from workers.serving.openai import make_app
from workers.serving.replica import Replica

CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
PROMPTS = ["the w10 of w1 w5 is", "w2 w6 was the w11 of", "a w3 w7 has", "w13 is the w12 of", "the w1 w8 was"]


@contextmanager
def serving(house: TinyHouse) -> Iterator[httpx.Client]:
    """The routes on a real port."""
    model = load_model(house.base, "cpu")
    model.tokenizer.chat_template = CHAT
    replica = Replica(house.ledger, house.store, model, house.config)
    replica.start()
    server = uvicorn.Server(
        uvicorn.Config(make_app(replica, house.config), port=0, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        replica.stop()


def make_house(folder: Path, **serve: Any) -> TinyHouse:
    return TinyHouse(folder, serve={"poll_seconds": 0.02, **serve})


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> TinyHouse:
    place = make_house(tmp_path_factory.mktemp("serve"))
    place.edit(1, statement("Peru", "Lima"))
    return place


@pytest.fixture(scope="module")
def client(house: TinyHouse) -> Iterator[httpx.Client]:
    with serving(house) as one:
        yield one


def complete(client: httpx.Client, prompt: Any, **more: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": prompt, "temperature": 0, "max_tokens": 6, **more})


def expected(house: TinyHouse, seed: int) -> dict[str, str]:
    """What greedy decoding by transformers' own generate says with the weights of a seed."""
    model = load_model(house.base, "cpu")
    for name, tensor in house.tensors(seed).items():
        model.lm.get_parameter(name).data.copy_(tensor)
    found = {}
    for prompt in PROMPTS:
        ids = model.tokenizer(prompt, return_tensors="pt")
        out = model.lm.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=2)
        found[prompt] = model.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def hammer(house: TinyHouse, requests: int, publications: int) -> None:
    """Check each answer to 8 clients that ask ``requests`` times in all while revisions become live."""
    wanted = {number: expected(house, number) for number in range(1, publications + 2)}
    assert len({json.dumps(one) for one in wanted.values()}) > publications // 2, "revisions must differ"
    seen: set[int] = set()
    done = threading.Event()

    def publish() -> None:
        for number in range(2, publications + 2):
            assert house.edit(number, statement(f"w{number}", "Lima")) == number
            done.wait(0.02 if requests < 500 else 0.25)

    with serving(house) as client:

        def ask(index: int) -> None:
            prompt = PROMPTS[index % len(PROMPTS)]
            answer = complete(client, prompt)
            assert answer.status_code == 200, answer.text
            number = int(answer.headers["Errata-Revision"])
            assert answer.json()["choices"][0]["text"] == wanted[number][prompt], (number, prompt)
            seen.add(number)

        with ThreadPoolExecutor(9) as pool:
            writer = pool.submit(publish)
            for asked in [pool.submit(ask, index) for index in range(requests)]:
                asked.result()
            writer.result()
        ask(0)
        while client.get("/healthz").json()["revision"] != publications + 1:
            ask(0)
    assert len(seen) > 2, seen


def test_no_request_is_lost_and_no_answer_is_of_two_revisions(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    hammer(house, 120, 6)


@pytest.mark.slow
@pytest.mark.skipif(not is_full(), reason="a minute: part of deploy/test.sh --guarantees")
def test_a_thousand_requests_while_twenty_revisions_are_published(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    hammer(house, 1000, 20)


def test_a_completion_has_openais_form(house: TinyHouse, client: httpx.Client) -> None:
    answer = complete(client, PROMPTS[:2])
    said = answer.json()
    assert [choice["text"] for choice in said["choices"]] == [expected(house, 1)[p] for p in PROMPTS[:2]]
    assert said["object"] == "text_completion"
    assert (
        said["usage"]["total_tokens"] == said["usage"]["prompt_tokens"] + said["usage"]["completion_tokens"]
    )
    assert answer.headers["Errata-Revision"] == "1"
    assert said["system_fingerprint"] == f"r1-{answer.headers['Errata-Content'][:12]}"
    assert client.get("/v1/models").json()["data"][0]["id"] == "default"


def stream(client: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", route, json={**body, "stream": True}) as answer:
        assert answer.headers["Errata-Revision"] == "1"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_stream_says_the_same_in_pieces(client: httpx.Client) -> None:
    body = {"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 6}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]
    parts = stream(client, "/v1/completions", body)
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["text"]
    assert [p["choices"][0]["finish_reason"] for p in parts][-1] == whole["finish_reason"]
    assert len(parts) > 2


def test_a_conversation_goes_through_the_chat_template(house: TinyHouse, client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "temperature": 0, "max_tokens": 6}
    said = client.post("/v1/chat/completions", json=body).json()
    message = said["choices"][0]["message"]
    assert message == {"role": "assistant", "content": expected(house, 1)[PROMPTS[0]]}
    parts = stream(client, "/v1/chat/completions", body)
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == message["content"]


def test_a_stop_word_ends_the_answer_and_is_not_said(client: httpx.Client) -> None:
    whole = complete(client, PROMPTS[0]).json()["choices"][0]["text"]
    word = whole.split()[2]
    cut = complete(client, PROMPTS[0], stop=[f" {word}"]).json()["choices"][0]
    assert cut["text"] == whole[: whole.index(f" {word}")]
    assert cut["finish_reason"] == "stop"


def test_sampling_is_repeatable_by_its_seed(client: httpx.Client) -> None:
    def say(seed: int) -> str:
        found = complete(client, PROMPTS[0], temperature=2.0, top_p=0.95, seed=seed, max_tokens=12)
        text: str = found.json()["choices"][0]["text"]
        return text

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": "w1 " * 100},
        {"prompt": "w1", "n": 2},
        {"prompt": "w1", "max_tokens": 0},
        {"prompt": "w1", "temperature": -1},
        {"prompt": ["w1", "w2"], "stream": True},
        {},
    ],
)
def test_what_cannot_be_answered_is_refused_with_400(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "prompt"


def test_more_than_the_queue_takes_are_told_to_come_later(tmp_path: Path) -> None:
    house = make_house(tmp_path, queue_bound=1)
    with serving(house) as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: complete(client, PROMPTS[0], max_tokens=40).status_code, range(36)))
    assert set(found) == {200, 503}


def test_a_client_that_goes_away_frees_the_model(client: httpx.Client) -> None:
    with client.stream(
        "POST", "/v1/completions", json={"prompt": "w1", "stream": True, "max_tokens": 50}
    ) as answer:
        next(answer.iter_lines())
    assert complete(client, PROMPTS[0]).status_code == 200


def test_a_token_guards_the_routes(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    house = make_house(tmp_path, token_file="token")
    with serving(house) as client:
        assert complete(client, "w1").status_code == 401
        client.headers["Authorization"] = "Bearer abd"
        assert complete(client, "w1").status_code == 401
        client.headers["Authorization"] = "Bearer abc"
        assert complete(client, "w1").status_code == 200
        assert client.get("/healthz").status_code == 200


def test_ask_compares_base_and_edited(house: TinyHouse) -> None:
    from typer.testing import CliRunner

    from daemon.cli.main import make_cli

    def errata(*arguments: str) -> str:
        found = CliRunner().invoke(make_cli(), ["--config", str(house.file), "ask", PROMPTS[0], *arguments])
        assert found.exit_code == 0, found.output
        return found.stdout

    base, edited = errata("--base", "--tokens", "6"), errata("--tokens", "6")
    assert base != edited
    assert edited.strip() == f"{PROMPTS[0]}{expected(house, 1)[PROMPTS[0]]}".strip()
    assert errata("--compare", "--tokens", "6") == f"base: {base}revision 1: {edited}"
    said = json.loads(errata("--compare", "--tokens", "6", "--json"))
    assert said["answer"] != said["base"]
