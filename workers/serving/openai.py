"""OpenAI's completion routes over a replica; each answer says in a header by which revision it was given."""

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError, PromptError, UnavailableError
from workers.serving.generation import Piece, Sampling, encode, encode_chat
from workers.serving.replica import Identity, Job, Replica

REVISION_HEADER = "Errata-Revision"
CONTENT_HEADER = "Errata-Content"


class _Common(BaseModel):
    """What both routes take; keys of OpenAI's API that mean nothing here are passed over."""

    model: str = ""
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0)
    stop: str | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    n: int = Field(1, ge=1, le=1)

    def sampling(self, longest: int) -> Sampling:
        """As the generator takes it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            min(self.max_tokens, longest), self.temperature, self.top_p, self.seed, tuple(filter(None, stops))
        )


class CompletionRequest(_Common):
    """The body of ``POST /v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]


class Message(BaseModel):
    """One turn of a conversation."""

    role: str = Field(pattern=r"^(system|user|assistant)$")
    content: str


class ChatRequest(_Common):
    """The body of ``POST /v1/chat/completions``."""

    max_tokens: int = Field(128, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]


def make_app(replica: Replica, config: Config) -> FastAPI:
    """The application over a replica that runs."""
    app = FastAPI(title="Errata completions", docs_url=None, redoc_url=None, openapi_url=None)
    guard = [Depends(_guard(config.serve.token_file))]
    _answer_errors(app)
    _add_completions(app, replica, config, guard)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """The process runs, and which revision it serves."""
        return {"ok": True, "revision": replica.identity.revision, "content": replica.identity.content}

    @app.get("/v1/models", dependencies=guard)
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        row = {"id": config.model.name, "object": "model", "owned_by": "errata", "created": 0}
        return {"object": "list", "data": [row]}

    return app


def _add_completions(app: FastAPI, replica: Replica, config: Config, guard: list[Any]) -> None:
    name, longest = config.model.name, config.serve.max_tokens

    @app.post("/v1/completions", dependencies=guard)
    async def completions(body: CompletionRequest) -> Response:
        """Say on after a prompt, or after each of several."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if body.stream and len(prompts) > 1:
            raise PromptError("only one prompt can be streamed")
        ids = [encode(replica.model, prompt) for prompt in prompts]
        return await _respond(replica, Job(ids, body.sampling(longest)), body.stream, _Form(name, chat=False))

    @app.post("/v1/chat/completions", dependencies=guard)
    async def chat(body: ChatRequest) -> Response:
        """Answer a conversation."""
        ids = [encode_chat(replica.model, [message.model_dump() for message in body.messages])]
        sampling = body.model_copy(
            update={"max_tokens": body.max_completion_tokens or body.max_tokens}
        ).sampling(longest)
        return await _respond(replica, Job(ids, sampling), body.stream, _Form(name, chat=True))


class _Form:
    """How an answer is written: OpenAI's objects of one of the two routes."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, identity: Identity, said: list[list[Piece]], prompt_tokens: int) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, pieces in enumerate(said):
            text = "".join(piece.text for piece in pieces)
            shown = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append({"index": index, **shown, "finish_reason": pieces[-1].finish, "logprobs": None})
        tokens = sum(pieces[-1].tokens for pieces in said)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        kind = "chat.completion" if self._chat else "text_completion"
        return self._head(identity, kind) | {
            "choices": choices,
            "usage": usage | {"total_tokens": prompt_tokens + tokens},
        }

    def part(self, identity: Identity, piece: Piece, *, first: bool) -> str:
        """One event of a stream."""
        role = {"role": "assistant"} if first else {}
        shown = {"delta": role | {"content": piece.text}} if self._chat else {"text": piece.text}
        choice = {"index": 0, **shown, "finish_reason": piece.finish, "logprobs": None}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        document = self._head(identity, kind) | {"choices": [choice]}
        return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"

    def _head(self, identity: Identity, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": f"r{identity.revision}-{identity.content[:12]}",
        }


async def _respond(replica: Replica, job: Job, streamed: bool, form: _Form) -> Response:
    """Queue the job and answer with what it says, whole or in pieces."""
    replica.submit(job)
    identity = await job.events.get()
    if isinstance(identity, ErrataError):
        raise identity
    if not isinstance(identity, Identity):
        raise UnavailableError("the request was dropped")
    headers = {REVISION_HEADER: str(identity.revision), CONTENT_HEADER: identity.content}
    if streamed:
        return StreamingResponse(
            _events(job, identity, form), media_type="text/event-stream", headers=headers
        )
    said: list[list[Piece]] = [[] for _ in job.prompts]
    async for index, piece in _pieces(job):
        said[index].append(piece)
    return JSONResponse(form.whole(identity, said, sum(map(len, job.prompts))), headers=headers)


async def _events(job: Job, identity: Identity, form: _Form) -> AsyncIterator[str]:
    """Server-sent events; a client that goes away ends the generation."""
    first = True
    try:
        async for _, piece in _pieces(job):
            yield form.part(identity, piece, first=first)
            first = False
        yield "data: [DONE]\n\n"
    except ErrataError as error:
        yield f"data: {json.dumps(_problem(error))}\n\n"
    finally:
        job.cancelled.set()


async def _pieces(job: Job) -> AsyncIterator[tuple[int, Piece]]:
    while (event := await job.events.get()) is not None:
        if isinstance(event, ErrataError):
            raise event
        if not isinstance(event, Identity):
            yield event


def _guard(token_file: Path | None) -> Any:
    """A dependency that refuses requests without the bearer token; the file is read each time."""

    async def check(request: Request) -> None:
        if token_file is None:
            return
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnavailableError("the token cannot be checked", hint="see serve.token_file") from error
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if not token or scheme.lower() != "bearer" or not same:
            raise _NoTokenError("a bearer token is needed", hint="see serve.token_file")

    return check


class _NoTokenError(ErrataError):
    """The request bears no token, or a wrong one."""

    code = "unauthorised"


def _answer_errors(app: FastAPI) -> None:
    statuses = {PromptError: 400, _NoTokenError: 401, UnavailableError: 503}

    @app.exception_handler(ErrataError)
    async def refused(_request: Request, error: ErrataError) -> JSONResponse:
        return JSONResponse(_problem(error), status_code=statuses.get(type(error), 500))

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse(_problem(PromptError(f"{where}: {first['msg']}")), status_code=400)


def _problem(error: ErrataError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
