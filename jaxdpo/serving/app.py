"""The application: routes, bounds and errors put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.serving.answering import AnsweringModel, AnswerSettings
from jaxdpo.serving.best import named_criteria
from jaxdpo.serving.chat import chat_routes
from jaxdpo.serving.completions import completion_routes
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.metrics import Metrics
from jaxdpo.serving.replies import CLIENT_GONE, error_reply
from jaxdpo.serving.requests import key_check
from jaxdpo.serving.status import health_route, status_routes
from jaxdpo.serving.tokens import token_routes
from jaxdpo.serving.unread import ReadsToTheEnd
from jaxdpo.serving.watching import Watched


def make_app(models: Mapping[str, AnsweringModel], settings: ServeConfig) -> FastAPI:
    """Makes the application that serves models; it starts their threads and ends them.

        app = make_app(load_models(settings), settings)
        app.include_router(routes_of_a_page)  # these need no key, unless they ask for one

    Args:
      models: Name ↦ model.
      settings: Bounds, key and criteria.

    Raises:
      UserError: If the key cannot be read, or there is no such criterion.
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
            # In threads: what is under way is waited for, and each thread hands its last events to
            # this loop.
            await asyncio.gather(
                *(asyncio.to_thread(model.scheduler.stop) for model in models.values())
            )

    # No pages of documentation: they load scripts from other hosts.
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics()
    for model in models.values():
        model.metrics = metrics
    app.state.models, app.state.settings, app.state.metrics = models, settings, metrics
    app.add_middleware(Watched, settings=settings, metrics=metrics)
    # Added last, so it is outside of all that may refuse a request.
    app.add_middleware(ReadsToTheEnd, body_bytes=settings.limits.body_bytes)
    with_key = [Depends(key_check(settings))]
    criteria = named_criteria(settings.criteria)
    for routes in (
        chat_routes(models, settings, criteria),
        completion_routes(models, settings),
        token_routes(models, settings),
        status_routes(models, metrics),
    ):
        app.include_router(routes, dependencies=with_key)
    app.include_router(health_route(models))
    _answer_errors(app)
    return app


async def _warm_up(model: AnsweringModel) -> None:
    settings = AnswerSettings(max_new_tokens=1, temperature=0.0)
    async for _ in model.complete([[model.chat.end_token_id]], settings):
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
