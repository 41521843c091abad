"""The application: routes, bounds and errors put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.serving.answering import AnsweringModel, AnswerSettings
from jaxdpo.serving.chat import chat_routes
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.replies import CLIENT_GONE, error_reply


def make_app(models: Mapping[str, AnsweringModel], settings: ServeConfig) -> FastAPI:
    """Makes the application that serves models; it starts their threads and ends them.

    Args:
      models: Name ↦ model.
      settings: Bounds and key.

    Raises:
      UserError: If the key cannot be read.
    """

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        for model in models.values():
            model.scheduler.start()
        # Compiles what every answer needs before the first one is asked for.
        await asyncio.gather(*map(_warm_up, models.values()))
        try:
            yield
        finally:
            for model in models.values():
                model.scheduler.stop()

    # No pages of documentation: they load scripts from other hosts.
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.models, app.state.settings = models, settings
    app.include_router(chat_routes(models, settings))
    _answer_errors(app)
    return app


async def _warm_up(model: AnsweringModel) -> None:
    settings = AnswerSettings(max_new_tokens=1, temperature=0.0)
    async for _ in model.complete([model.chat.end_token_id], settings):
        pass


def _answer_errors(app: FastAPI) -> None:
    """Has every error answered in OpenAI's form."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return error_reply(error)

    @app.exception_handler(BadPair)
    async def bad_messages(request: Request, error: BadPair) -> JSONResponse:
        return error_reply(RequestError(400, error.reason, "messages", error.code))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{request.method} {request.url.path}: {error.detail}"
        return error_reply(RequestError(error.status_code, said))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        # The log has the traceback; it is no business of whoever asks.
        return error_reply(RequestError(500, "the server failed; its log has the reason"))
