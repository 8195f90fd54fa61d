"""OpenAI's completion routes over a replica, with the answering revision in a header."""

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
from daemon.core.errors import ConfigError, ErrataError, PromptError, UnavailableError
from daemon.core.tokens import bearer_token, read_token
from workers.serving.generation import Piece, Sampling, encode, encode_chat
from workers.serving.replica import GenerationRequest, Replica, ServedRevision

REVISION_HEADER = "Errata-Revision"
CONTENT_HEADER = "Errata-Content"


class _Common(BaseModel):
    """The fields that both routes take, where other keys of OpenAI's API are ignored."""

    model: str = ""
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0)
    stop: str | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    n: int = Field(1, ge=1, le=1)

    def sampling(self, longest: int) -> Sampling:
        """The sampling that the body asks for, of at most ``longest`` tokens."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        stop = tuple(filter(None, stops))
        return Sampling(min(self.tokens, longest), self.temperature, self.top_p, self.seed, stop)

    @property
    def tokens(self) -> int:
        """The asked number of tokens."""
        return self.max_tokens


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

    @property
    def tokens(self) -> int:
        """The asked number of tokens, of which ``max_completion_tokens`` is the newer name."""
        return self.max_completion_tokens or self.max_tokens


def make_app(replica: Replica, config: Config) -> FastAPI:
    """The application over a running replica."""
    app = FastAPI(title="Errata completions", docs_url=None, redoc_url=None, openapi_url=None)
    guard = [Depends(_guard(config.serve.token_file))]
    _answer_errors(app)
    _add_completions(app, replica, config, guard)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the process runs, and the revision that it serves."""
        return {"ok": True, "revision": replica.served.revision, "content": replica.served.content}

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
        """Continue a prompt, or each of several."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if body.stream and len(prompts) > 1:
            raise PromptError("only one prompt can be streamed", hint="send several prompts without stream")
        ids = [encode(replica.model, prompt) for prompt in prompts]
        return await _respond(
            replica, GenerationRequest(ids, body.sampling(longest)), body.stream, _Form(name, chat=False)
        )

    @app.post("/v1/chat/completions", dependencies=guard)
    async def chat(body: ChatRequest) -> Response:
        """Answer a conversation."""
        ids = [encode_chat(replica.model, [message.model_dump() for message in body.messages])]
        request = GenerationRequest(ids, body.sampling(longest))
        return await _respond(replica, request, body.stream, _Form(name, chat=True))


class _Form:
    """Writes an answer as OpenAI's objects of one of the two routes."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, served: ServedRevision, answers: list[list[Piece]], prompt_tokens: int) -> dict[str, Any]:
        """The document of a whole answer, with one choice for each prompt."""
        choices = []
        for index, pieces in enumerate(answers):
            text = "".join(piece.text for piece in pieces)
            shown = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append({"index": index, **shown, "finish_reason": pieces[-1].finish, "logprobs": None})
        tokens = sum(pieces[-1].tokens for pieces in answers)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        kind = "chat.completion" if self._chat else "text_completion"
        return self._head(served, kind) | {
            "choices": choices,
            "usage": usage | {"total_tokens": prompt_tokens + tokens},
        }

    def part(self, served: ServedRevision, piece: Piece, *, first: bool) -> str:
        """One server-sent event of a streamed answer."""
        role = {"role": "assistant"} if first else {}
        shown = {"delta": role | {"content": piece.text}} if self._chat else {"text": piece.text}
        choice = {"index": 0, **shown, "finish_reason": piece.finish, "logprobs": None}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        document = self._head(served, kind) | {"choices": [choice]}
        return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"

    def _head(self, served: ServedRevision, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": f"r{served.revision}-{served.content[:12]}",
        }


async def _respond(replica: Replica, request: GenerationRequest, streamed: bool, form: _Form) -> Response:
    """Queue a request and answer with the generated text, whole or as a stream."""
    replica.submit(request)
    served = await request.events.get()
    if isinstance(served, ErrataError):
        raise served
    if not isinstance(served, ServedRevision):
        raise UnavailableError("the request was dropped", hint="send it again")
    headers = {REVISION_HEADER: str(served.revision), CONTENT_HEADER: served.content}
    if streamed:
        return StreamingResponse(
            _events(request, served, form), media_type="text/event-stream", headers=headers
        )
    answers: list[list[Piece]] = [[] for _ in request.prompts]
    async for index, piece in _pieces(request):
        answers[index].append(piece)
    return JSONResponse(form.whole(served, answers, sum(map(len, request.prompts))), headers=headers)


async def _events(request: GenerationRequest, served: ServedRevision, form: _Form) -> AsyncIterator[str]:
    """The answer as server-sent events, cancelled where the client disconnects."""
    first = True
    try:
        async for _, piece in _pieces(request):
            yield form.part(served, piece, first=first)
            first = False
        yield "data: [DONE]\n\n"
    except ErrataError as error:
        yield f"data: {json.dumps(_problem(error))}\n\n"
    finally:
        request.cancelled.set()


async def _pieces(request: GenerationRequest) -> AsyncIterator[tuple[int, Piece]]:
    while (event := await request.events.get()) is not None:
        if isinstance(event, ErrataError):
            raise event
        if not isinstance(event, ServedRevision):
            yield event


def _guard(token_file: Path | None) -> Any:
    """A dependency that refuses requests without the bearer token, which is read anew for each request."""

    async def check(request: Request) -> None:
        if token_file is None:
            return
        try:
            token = read_token(token_file)
        except ConfigError as error:
            raise UnavailableError(
                "the bearer token cannot be read", hint="check serve.token_file"
            ) from error
        offered = bearer_token(request.headers.get("authorization", ""))
        if not hmac.compare_digest(offered.encode(), token.encode()):
            raise _NoTokenError("a valid bearer token is needed", hint="serve.token_file holds it")

    return check


class _NoTokenError(ErrataError):
    """The request has no bearer token, or a wrong one."""

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
    """An error in the form of OpenAI's API."""
    return {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
