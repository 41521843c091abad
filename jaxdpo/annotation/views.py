"""The studio's pages and exports."""

import asyncio
import json
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from jaxdpo.annotation.access import RefusedError
from jaxdpo.annotation.overview import (
    SHOWN,
    judge_agreements,
    median_length,
    overview_of,
    prompt_text,
    where_from,
)
from jaxdpo.annotation.run_curves import curves_of
from jaxdpo.annotation.studio import Studio, person
from jaxdpo.data.writing import pair_record
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import label_of
from jaxdpo.feedback.collecting import Collected, collect
from jaxdpo.feedback.human_judgements import alignment_lines
from jaxdpo.feedback.tools.outgoing import argilla_record, label_studio_task
from jaxdpo.inspection.texts import said

PAGES = ("chat", "review", "data", "compare")


@cache
def _templates() -> jinja2.Environment:
    # Every text is escaped: it is what a model, a user or a file says.
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdpo.annotation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(studio: Studio, name: str, request: Request, **values: Any) -> Response:
    annotator = studio.access.annotator(request)
    if annotator is None:
        return RedirectResponse("/login", 303)
    html = (
        _templates()
        .get_template(f"{name}.html.jinja")
        .render(
            page=name,
            pages=PAGES,
            annotator=annotator,
            tokens=bool(studio.config.annotators),
            **values,
        )
    )
    return HTMLResponse(html)


def add_pages(app: FastAPI, studio: Studio) -> None:
    """Adds the pages and exports of a studio to its application."""

    @app.get("/")
    async def root() -> Response:
        return RedirectResponse("/chat" if studio.models else "/review", 303)

    @app.get("/login")
    async def login() -> Response:
        template = _templates().get_template("login.html.jinja")
        return HTMLResponse(template.render(page="login", pages=(), annotator="", tokens=True))

    @app.get("/chat")
    async def chat(request: Request) -> Response:
        return _page(studio, "chat", request, models=list(studio.models))

    @app.get("/review")
    async def review(request: Request) -> Response:
        criteria = [label_of(spec) for spec in studio.config.criteria]
        return _page(studio, "review", request, rows=len(studio.tasks), criteria=criteria)

    @app.get("/compare")
    # Not async: runs' files are read and drawn, which takes a while where there are many steps.
    def compare(request: Request) -> Response:
        matches = list(enumerate(studio.matches.pairs)) if studio.matches.tasks else []
        together, runs = curves_of(studio.config.models)
        return _page(
            studio,
            "compare",
            request,
            models=list(studio.models),
            matches=matches,
            together=together,
            runs=runs,
        )


def add_data(app: FastAPI, studio: Studio) -> None:
    """Adds the Data page and the exports of a studio to its application."""

    @app.get("/data")
    # Not async: collecting takes seconds for many events, which pass in a thread of its own.
    def data(request: Request) -> Response:
        overview = overview_of(studio.config.folder)
        pairs = overview.collected.pairs
        shown = [
            (pair.metadata["feedback"]["source"], prompt_text(pair), said(pair.chosen),
             said(pair.rejected), where_from(pair))
            for pair in pairs[-SHOWN:]
        ]  # fmt: skip
        return _page(
            studio,
            "data",
            request,
            overview=overview,
            pairs=list(reversed(shown)),
            longer=median_length(pairs),
            progress=studio.queue.everybody(),
            criteria=[label_of(spec) for spec in studio.config.criteria],
            exports=EXPORTS,
            command=_command(studio),
        )

    @app.get("/api/judges")
    async def judges(request: Request) -> list[dict[str, Any]]:
        person(studio, request)
        # By itself: a judge may take minutes, and the page does not wait for it.
        collected = await asyncio.to_thread(collect, "events", studio.config.folder)
        try:
            found = await asyncio.to_thread(judge_agreements, studio.config.criteria, collected)
        except UserError as error:
            raise RefusedError(502, str(error)) from None
        return [
            {
                "criterion": each.criterion,
                "answers": each.answers,
                "agreement": str(each.agreement),
                "kappa": str(each.kappa),
            }
            for each in found
        ]

    @app.get("/export/{name}")
    def export(request: Request, name: str, criterion: str | None = None) -> Response:
        person(studio, request)
        collected = collect("events", studio.config.folder)
        try:
            text = _exported(name, studio, collected, criterion)
        except UserError as error:
            raise RefusedError(404, str(error)) from None
        return Response(
            text,
            # Never shown by the browser, whatever it holds.
            media_type="application/octet-stream",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


EXPORTS = (
    ("pairs.jsonl", "preference pairs"),
    ("labels.jsonl", "labelled answers, for KTO"),
    ("alignment.jsonl", "people's PASS and FAIL"),
    ("events.jsonl", "every event"),
    ("argilla.json", "prompts and answers for Argilla"),
    ("label_studio.json", "prompts and answers for Label Studio"),
)


def _exported(name: str, studio: Studio, collected: Collected, criterion: str | None) -> str:
    if name == "pairs.jsonl":
        # One form for the whole file, as the command writes it.
        single = all(len(p.chosen) == len(p.rejected) == 1 for p in collected.pairs)
        return _lines([pair_record(pair, single) for pair in collected.pairs])
    if name == "labels.jsonl":
        return _lines([pair_record(pair, True) for pair in collected.labelled])
    if name == "alignment.jsonl":
        return _lines(alignment_lines(collected.judged, criterion))
    if name == "events.jsonl":
        return _lines(studio.store.events())
    rows = [
        (list(task.prompt.messages), [content for content, _ in task.answers])
        for task in studio.tasks.values()
    ]
    if name == "argilla.json":
        return json.dumps([argilla_record(*row) for row in rows], ensure_ascii=False, indent=1)
    if name == "label_studio.json":
        return json.dumps([label_studio_task(*row) for row in rows], ensure_ascii=False, indent=1)
    raise UserError(f"{name}: there is no such export")


def _lines(records: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _command(studio: Studio) -> str:
    model = next(iter(studio.config.models.values()), "models/sft")
    folder = shlex.quote(studio.config.folder)
    return (
        f"jaxdpo collect events {folder} -o pairs.jsonl && "
        f"jaxdpo train model={shlex.quote(model)} data=pairs.jsonl training.folder=runs/feedback"
    )
