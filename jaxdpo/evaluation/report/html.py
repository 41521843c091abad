"""The report of an evaluation: one HTML file that needs nothing else; a notebook's display."""

import json
from html import escape
from importlib.resources import files
from typing import Any

from jaxdpo.evaluation.report.charts import chart
from jaxdpo.evaluation.report.tables import Table, tables
from jaxdpo.evaluation.results import Results, Row, judgement_of, unjudged

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse; margin-bottom: 1em }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
caption { text-align: left; font-weight: bold; padding: .3em 0 }
svg { max-width: 100%; height: auto }
.filters { position: sticky; top: 0; background: #fff; padding: .6em 0;
           border-bottom: 1px solid #ddd }
.filters select, .filters input { font: inherit; margin-right: .6em }
.example { border: 1px solid #ddd; border-radius: 6px; margin: 1em 0; padding: .4em 1em }
.message { color: #555; white-space: pre-wrap; overflow-wrap: anywhere }
.answers { display: flex; gap: 1em; flex-wrap: wrap }
.answer { flex: 1 1 18em; min-width: 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6em }
.pass { color: #00674a } .fail { color: #a53f00 } .none { color: #666 }
.said { font-size: 13px }
"""


def page(comparison: Results) -> str:
    """Returns the whole report; every text is escaped, and nothing is fetched from anywhere."""
    title = f"{' vs '.join(comparison.models)}: {len(comparison.rows)} prompts"
    script = files("jaxdpo.evaluation.report").joinpath("report.js").read_text(encoding="utf-8")
    # Answers travel as data and become text nodes: whatever a model says is shown, never run.
    data = json.dumps(examples(comparison), ensure_ascii=False, allow_nan=False)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
        *(f"<p>{escape(name)}: {escape(path)}</p>" for name, path in comparison.models.items()),
        notebook_html(comparison),
        _not_judged(comparison),
        "<h2>Answers</h2><div class=filters id=filters></div><p id=shown role=status></p>",
        "<div id=examples></div>",
        # In a script, `<` could end it.
        f'<script type="application/json" id=data>{data.replace("<", chr(92) + "u003c")}</script>',
        f"<script>{script}</script>",
    ]
    return "\n".join(parts) + "</html>\n"


def notebook_html(comparison: Results) -> str:
    """Returns the chart and the tables as HTML."""
    picture = ""
    if comparison.criteria:
        svg = chart(comparison, "svg").decode("utf-8")
        # Without the XML declaration, which may only begin a file.
        picture = svg[svg.index("<svg") :]
    return picture + "".join(_table(table) for table in tables(comparison))


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


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{escape(table.title)}</caption><tr>{head}</tr>{body}</table>"


def _not_judged(comparison: Results) -> str:
    failed = list(unjudged(comparison))
    if not failed:
        return ""
    header = ("prompt", "model", "criterion", "why")
    return _table(Table(f"Could not be judged: {len(failed)}", header, failed))
