"""The report as one HTML file that needs nothing else; every text in it is escaped."""

from collections.abc import Mapping, Sequence
from html import escape

from jaxdpo.inspection.findings import SHOWN, Finding
from jaxdpo.inspection.histograms import draw_histograms
from jaxdpo.inspection.places import Places
from jaxdpo.inspection.shortcuts import Shortcut
from jaxdpo.inspection.tokens import Seen, Tokenized, length_lines, part_names

# The page is a file of its own: no script, no link, no font, nothing that a browser would fetch.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd;
       text-align: left; vertical-align: top }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; padding: .6em }
.prompt { background: #eee } .scored { background: #cfe8cf } .end { background: #f3c98b }
.unscored { background: #ddd; color: #666 } .cut { color: #a33; text-decoration: line-through }
.between { font-weight: bold; display: block }
summary { cursor: pointer } details { max-height: 20em; overflow: auto }
.tokens span:nth-child(even) { filter: brightness(.95) }
"""


def page(
    title: str,
    summary: str,
    counts: Mapping[str, str],
    findings: Sequence[Finding],
    shortcuts: Sequence[Shortcut],
    tokenized: Tokenized | None,
) -> str:
    """Returns the whole report as HTML.

    Args:
      title: The data's name.
      summary: What reading said, in lines.
      counts: Counts by what was counted.
      findings: What was found, with all its places.
      shortcuts: The trivial rules that were tried.
      tokenized: The pairs as tokens, if a tokenizer was named.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><pre>{escape(summary)}</pre>",
        "<h2>Findings</h2>",
        _findings(findings) if findings else "<p>Nothing was found.</p>",
        "<h2>Trivial rules</h2>",
        table(
            ("rule", "predicts the chosen answer for", "what it learned"),
            [(s.name, s.share(), s.detail) for s in shortcuts],
        )
        if shortcuts
        else "<p>There are no two answers to compare.</p>",
        "<h2>Counts</h2>",
        table(("", ""), list(counts.items())),
    ]
    if tokenized is not None:
        parts += ["<h2>Tokens</h2>", *_token_parts(tokenized)]
    return "\n".join(parts) + "</html>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of text."""
    return _table(header, [[escape(cell) for cell in row] for row in rows])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose cells are HTML already; the header is text."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _findings(findings: Sequence[Finding]) -> str:
    rows = [
        [escape(f.code), f"{f.count:,}", escape(f.title), _places(f.where), escape(f.remedy)]
        for f in findings
    ]
    return _table(("kind", "pairs", "what", "where", "what to do"), rows)


def _places(where: Places) -> str:
    """Returns the first places, and all of them where one clicks."""
    shown = escape(", ".join(where[:SHOWN]))
    if len(where) <= SHOWN:
        return shown
    # Every place is written out, so that the browser's search finds a line by its number.
    every = "<br>".join(escape(place) for place in where)
    return f"{shown}<details><summary>all {len(where):,}</summary>{every}</details>"


def _token_parts(tokenized: Tokenized) -> list[str]:
    lengths = tokenized.lengths
    columns = list(zip(part_names(lengths), lengths.T, strict=True))
    return [
        table(("tokens", "median", "95 %", "longest"), length_lines(lengths)),
        draw_histograms(columns, "tokens", "pairs"),
        "<h2>Packing and cost</h2>",
        *(f"<p>{escape(line)}</p>" for line in tokenized.forecast),
        "<h2>What the model sees</h2><p><span class=prompt>prompt</span> "
        "<span class=scored>scored</span> <span class=end>end token</span> "
        "<span class=unscored>not scored</span> <span class=cut>cut</span></p>",
        *map(_tokens, tokenized.shown),
    ]


def _tokens(seen: Seen) -> str:
    # Neighbouring tokens differ in shade, so that their borders are seen without a separator that
    # could be taken for text.
    spans = "".join(f"<span class={kind}>{escape(text)}</span>" for kind, text in seen.spans)
    cut = f", {seen.cut} prompt tokens cut" if seen.cut else ""
    note = "" if seen.outcome == "whole" else f" ({seen.outcome.replace('_', ' ')}{cut})"
    return f"<h3>{escape(seen.source)}{note}</h3><pre class=tokens>{spans}</pre>"
