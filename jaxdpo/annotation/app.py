"""The studio as an application: pages, and what their scripts ask for."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from jaxdpo.annotation.access import MAX_BODY, RefusedError, body_of
from jaxdpo.annotation.acts import act, ask, check_owner
from jaxdpo.annotation.answering import Answering
from jaxdpo.annotation.config import NAME
from jaxdpo.annotation.conversation import shown, turns_in
from jaxdpo.annotation.studio import Studio, person
from jaxdpo.annotation.views import add_data, add_pages
from jaxdpo.evaluation.criteria.spec import label_of
from jaxdpo.feedback.store import IdTakenError
from jaxdpo.pages.page import style
from jaxdpo.serving.unread import ReadsToTheEnd

_STATIC = files("jaxdpo.annotation") / "static"
_KINDS = {
    ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


def make_app(studio: Studio) -> FastAPI:
    """Makes the application; it starts the models and ends them."""

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        # Threads start with the loop, so that an application that is only made leaves none behind.
        for model in studio.models.values():
            model.start()
        try:
            yield
        finally:
            await studio.generating.stop()
            for model in studio.models.values():
                model.stop()
            studio.store.close()

    # No pages of documentation: they load scripts from other hosts.
    app = FastAPI(lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(studio.access.guard)
    # Added last, so it is outside of all that may refuse a request.
    app.add_middleware(ReadsToTheEnd, body_bytes=MAX_BODY)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.reason}, error.status)

    @app.exception_handler(IdTakenError)
    async def taken(request: Request, error: IdTakenError) -> JSONResponse:
        return JSONResponse({"error": f"{error}: is another act's id"}, 409)

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name == "page.css":
            return Response(str(style()), media_type=_KINDS[".css"])
        # Names of files that are there, and nothing that was made from a path.
        known = {file.name: file for file in _STATIC.iterdir()}
        if name not in known:
            return PlainTextResponse("not found", 404)
        kind = _KINDS["." + name.rpartition(".")[2]]
        return Response(known[name].read_bytes(), media_type=kind)

    _add_login(app, studio)
    _add_conversations(app, studio)
    _add_acts(app, studio)
    _add_review(app, studio)
    _add_compare(app, studio)
    add_pages(app, studio)
    add_data(app, studio)
    return app


def _add_login(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/login")
    async def login(request: Request) -> Response:
        given = (await body_of(request)).get("name")
        if not isinstance(given, str):
            raise RefusedError(400, "name is no text")
        if studio.config.annotators and studio.access.owner(given) is None:
            # A guess a second, and not thousands.
            await asyncio.sleep(1)
            raise RefusedError(403, "this token is nobody's")
        if not studio.config.annotators and not NAME.fullmatch(given):
            raise RefusedError(400, "write a name of letters, digits and .@-_, 40 at most")
        response = JSONResponse({})
        studio.access.remember(response, given)
        return response


def state_of(studio: Studio, conversation: str, annotator: str) -> dict[str, Any]:
    """Returns a conversation as the page shows it.

    Args:
      studio: The studio.
      conversation: Name of the conversation.
      annotator: Whose acts may be undone.
    """
    turns = turns_in(studio.store.events(conversation))
    return {
        "conversation": conversation,
        "turns": shown(turns, annotator),
        "answering": studio.generating.attempt(conversation) is not None,
        "error": studio.generating.error(conversation),
    }


def _add_conversations(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/conversation")
    def conversation(request: Request, name: str) -> dict[str, Any]:
        annotator = person(studio, request)
        return state_of(studio, check_owner(name, annotator), annotator)

    @app.get("/api/conversations")
    def conversations(request: Request) -> list[dict[str, str]]:
        found = studio.store.conversations(f"chat/{person(studio, request)}/")
        listed = [(turns_in(events)[0].prompt, name) for name, events in found.items()]
        return [
            {"conversation": name, "title": str(prompt["messages"][-1]["content"])[:80]}
            for prompt, name in reversed(listed[-50:])
        ]


def _add_acts(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/ask")
    async def asked(request: Request) -> dict[str, Any]:
        annotator, body = person(studio, request), await body_of(request)
        if not studio.models:
            raise RefusedError(409, "no model answers here; start the studio with models=…")
        name = await asyncio.to_thread(ask, studio.store, body, annotator)
        turn = turns_in(studio.store.events(name))[-1]
        # Answered already if it was sent again: the first reply was lost, and not the question.
        if not turn.state.attempts:
            studio.generating.begin(name, 0, studio.config.answers)
        return state_of(studio, name, annotator)

    @app.post("/api/acts")
    async def acts(request: Request) -> dict[str, Any]:
        annotator, body = person(studio, request), await body_of(request)
        # No await between check and append within the thread, and one thread holds the store: two
        # tabs cannot both pass a check that only one of them may.
        name = await asyncio.to_thread(act, studio.store, body, annotator)
        return state_of(studio, name, annotator)

    @app.post("/api/answer")
    async def answer(request: Request) -> dict[str, Any]:
        annotator, body = person(studio, request), await body_of(request)
        name = check_owner(body.get("conversation"), annotator)
        turns = turns_in(studio.store.events(name))
        if not turns or not studio.models:
            raise RefusedError(409, "there is nothing to answer")
        number = body.get("attempt")
        if type(number) is not int:
            raise RefusedError(400, "attempt is no number")
        # In a match the two models are settled; elsewhere they are drawn.
        models = studio.matches.models_of(name) or ()
        studio.generating.begin(name, number, studio.config.answers, models)
        return state_of(studio, name, annotator)

    @app.get("/api/stream")
    async def stream(request: Request, name: str) -> StreamingResponse:
        attempt = studio.generating.attempt(check_owner(name, person(studio, request)))

        async def lines() -> AsyncIterator[str]:
            # No lines where nothing is under way: the page then asks for the conversation itself.
            if attempt is not None:
                async for view in attempt.views():
                    yield json.dumps(view) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _add_review(app: FastAPI, studio: Studio) -> None:
    def queue_state(annotator: str, task: str | None) -> dict[str, Any]:
        return {
            "task": task,
            "conversation": task and studio.queue.conversation(task, annotator),
            "progress": studio.queue.progress(annotator),
            "criteria": [label_of(spec) for spec in studio.config.criteria],
        }

    @app.get("/api/review")
    def review(request: Request) -> dict[str, Any]:
        annotator = person(studio, request)
        return queue_state(annotator, studio.queue.next(annotator))

    @app.post("/api/review")
    async def finish(request: Request) -> dict[str, Any]:
        annotator, body = person(studio, request), await body_of(request)
        task, what = body.get("task"), body.get("do")
        if what not in ("next", "skip", "back") or (task is not None and task not in studio.tasks):
            raise RefusedError(400, "do is next, skip or back, task a row's name")

        def move() -> dict[str, Any]:
            if what == "back":
                back = studio.queue.previous(annotator, task)
                return queue_state(annotator, back or studio.queue.next(annotator))
            if task is not None:
                studio.queue.finish(annotator, task, what == "skip")
            return queue_state(annotator, studio.queue.next(annotator))

        return await asyncio.to_thread(move)


def _add_compare(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/side_by_side")
    async def side_by_side(request: Request) -> StreamingResponse:
        person(studio, request)
        text = (await body_of(request)).get("text")
        if not isinstance(text, str) or not text.strip():
            raise RefusedError(400, "write a prompt first")
        # Names are shown here, so what people think of it is no feedback and is not kept.
        messages = [{"role": "user", "content": text}]
        pieces: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def run(name: str, model: Answering) -> None:
            try:
                async for piece in model.answer(messages):
                    pieces.put_nowait({"model": name, "piece": piece})
            except Exception as error:  # noqa: BLE001
                # One model's failure is shown in its place; the others still answer.
                pieces.put_nowait({"model": name, "error": str(error)})
            pieces.put_nowait(None)

        async def lines() -> AsyncIterator[str]:
            tasks = [asyncio.create_task(run(*each)) for each in studio.models.items()]
            try:
                left = len(tasks)
                while left:
                    piece = await pieces.get()
                    if piece is None:
                        left -= 1
                    else:
                        yield json.dumps(piece) + "\n"
            finally:
                # Also where the page was closed: nobody waits for these answers.
                for task in tasks:
                    task.cancel()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.get("/api/match")
    def match(request: Request, pair: int) -> dict[str, Any]:
        annotator = person(studio, request)
        if not 0 <= pair < len(studio.matches.pairs):
            raise RefusedError(404, "there is no such match")
        score = studio.matches.score(pair)
        count = score.wins + score.losses + score.ties
        return {
            "conversation": studio.matches.next(annotator, pair),
            "first": score.first,
            "second": score.second,
            "count": count,
            "ties": score.ties,
            # JSON has no NaN, which the rate of no comparisons is.
            "rate": list(score.rate) if count else None,
            "p": score.p,
        }
