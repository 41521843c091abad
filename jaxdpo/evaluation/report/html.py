"""The report of an evaluation: one HTML file that needs nothing else; a notebook's display."""

import json
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.report import tables
from jaxdpo.evaluation.report.charts import panels
from jaxdpo.evaluation.report.verdict import verdict
from jaxdpo.evaluation.results import Results, Row, judgement_of, unjudged
from jaxdpo.pages import cells
from jaxdpo.pages.intervals import Bar, draw_intervals
from jaxdpo.pages.page import environment, render


class About(NamedTuple):
    """The circumstances of an evaluation.

    Attributes:
      made: Who made the page, and when.
      settings: What decided the figures: data, sampling, criteria, judge.
    """

    made: str
    settings: cells.Table


NOTHING_KNOWN = About("", cells.Table("", ("setting", "value"), ()))


def page(comparison: Results, about: About = NOTHING_KNOWN) -> str:
    """Returns the whole report; every text is escaped, and nothing is fetched from anywhere.

    Args:
      comparison: The figures and the answers.
      about: The circumstances, for the page's end.
    """
    script = files("jaxdpo.evaluation.report").joinpath("report.js").read_text(encoding="utf-8")
    return render(
        "evaluation.html.jinja",
        scripts=[script],
        title=f"{' vs '.join(comparison.models)}: {len(comparison.rows)} prompts",
        verdict=verdict(comparison),
        models=comparison.models,
        pictures=pictures(comparison),
        tables=shown_tables(comparison),
        # Answers travel as data and become text nodes: whatever a model says is shown, never run.
        data=examples(comparison),
        about=about,
    )


def notebook_html(comparison: Results) -> str:
    """Returns the pictures and the tables as HTML."""
    # A notebook has no style sheet of ours, so the tables come as the notebook draws tables.
    parts: Any = environment().get_template("parts.html.jinja").module
    drawn = [parts.table(table) for table in shown_tables(comparison)]
    return str(Markup("").join([*pictures(comparison), *drawn]))


def pictures(comparison: Results) -> list[Markup]:
    """Draws pass rates, and the scores of each criterion that only scores."""
    if not comparison.criteria:
        return []
    drawn = []
    # One picture for all pass rates, which share a scale; scores have scales of their own.
    for title, names, estimates in panels(comparison):
        groups = [
            (name, [_bar(model, of_model[place]) for model, of_model in estimates.items()])
            for place, name in enumerate(names)
        ]
        share = title == "pass rate"
        unit = "answers that pass" if share else "score"
        drawn.append(draw_intervals(title, unit, groups, share))
    return drawn


def _bar(model: str, estimate: Estimate) -> Bar:
    return Bar(model, estimate.value, estimate.low, estimate.high)


def shown_tables(comparison: Results) -> list[cells.Table]:
    """Returns all tables, with those answers at the end that could not be judged."""
    shown = [cells.Table(t.title, t.header, t.rows) for t in tables.tables(comparison)]
    if failed := list(unjudged(comparison)):
        header = ("prompt", "model", "criterion", "why")
        shown.append(cells.Table(f"Could not be judged: {len(failed)}", header, failed))
    return shown


def examples(comparison: Results) -> dict[str, Any]:
    """Returns the data that the report's script shows and filters."""
    return {
        "models": list(comparison.models),
        "criteria": list(comparison.criteria),
        "duels": [[d.first, d.second] for d in comparison.head_to_head],
        "rows": [_example(comparison, row) for row in comparison.rows],
    }


def _example(comparison: Results, row: Row) -> dict[str, Any]:
    return {
        "where": row.prompt.source or row.prompt.id,
        "messages": [[m["role"], _text(m)] for m in row.prompt.messages],
        "answers": {model: row.answers[model].completion for model in comparison.models},
        "judgements": {
            model: {
                name: judgement_of(row, model, name).model_dump() for name in comparison.criteria
            }
            for model in comparison.models
        },
        "preferences": [
            [first, second, preference.verdict, preference.explanation]
            for (first, second), preference in row.preferences.items()
        ],
    }


def _text(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    said = message.get("content") or ""
    return f"{said}\n{json.dumps(calls, ensure_ascii=False)}" if calls else said
