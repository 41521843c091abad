"""The report as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape

from jaxdpo.inspection.findings import Finding
from jaxdpo.inspection.shortcuts import Shortcut
from jaxdpo.inspection.tokens import Seen, Tokenized, histogram, length_lines, part_names

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd;
       text-align: left; vertical-align: top }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; padding: .6em }
.prompt { background: #eee } .scored { background: #cfe8cf } .end { background: #f3c98b }
.unscored { background: #ddd; color: #666 } .cut { color: #a33; text-decoration: line-through }
.between { font-weight: bold; display: block }
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
    """The whole report; every text in it is escaped."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><pre>{escape(summary)}</pre>",
        "<h2>Findings</h2>",
        table(
            ("kind", "pairs", "what", "where", "what to do"),
            [(f.code, f"{f.count}", f.title, ", ".join(f.where), f.remedy) for f in findings],
        )
        if findings
        else "<p>Nothing was found.</p>",
        "<h2>What trivial rules can tell</h2>",
        table(
            ("rule", "right", "what it learnt"),
            [(s.name, f"{s.accuracy:.0%} ± {s.interval:.0%}", s.detail) for s in shortcuts],
        ),
        "<h2>Counts</h2>",
        table(("", ""), list(counts.items())),
    ]
    if tokenized is not None:
        parts += ["<h2>Tokens</h2>", *_token_parts(tokenized)]
    return "\n".join(parts) + "</html>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _token_parts(tokenized: Tokenized) -> list[str]:
    parts = [table(("tokens", "median", "95 %", "longest"), length_lines(tokenized.lengths))]
    for name, column in zip(part_names(tokenized.lengths), tokenized.lengths.T, strict=True):
        parts.append(f"<h3>{name}</h3>{bars(histogram(column))}")
    parts.append("<h2>Packing and cost</h2>")
    parts += [f"<p>{escape(line)}</p>" for line in tokenized.forecast]
    parts.append(
        "<h2>What the model sees</h2><p><span class=prompt>prompt</span> "
        "<span class=scored>scored</span> <span class=end>end token</span> "
        "<span class=unscored>not scored</span> <span class=cut>cut</span></p>"
    )
    return parts + [_tokens(seen) for seen in tokenized.shown]


def _tokens(seen: Seen) -> str:
    spans = "".join(f"<span class={kind}>{escape(text)}</span>" for kind, text in seen.spans)
    cut = f", {seen.cut} prompt tokens cut" if seen.cut else ""
    note = "" if seen.outcome == "whole" else f" ({seen.outcome.replace('_', ' ')}{cut})"
    return f"<h3>{escape(seen.source)}{note}</h3><pre class=tokens>{spans}</pre>"


def bars(counts: Sequence[tuple[int, int]]) -> str:
    """A bar chart of (upper edge, count)."""
    most = max((count for _, count in counts), default=0) or 1
    rects = "".join(
        f'<rect x="{i * 20}" y="{100 - 100 * count / most:.1f}" width="18" '
        f'height="{100 * count / most:.1f}" fill="#47a"><title>below {edge}: {count}</title></rect>'
        for i, (edge, count) in enumerate(counts)
    )
    last = counts[-1][0] if counts else 0
    return (
        f'<svg viewBox="0 0 {20 * len(counts)} 120" width="600" role="img">{rects}'
        f'<text x="0" y="116" font-size="12">0</text><text x="{20 * len(counts)}" y="116" '
        f'font-size="12" text-anchor="end">{last} tokens</text></svg>'
    )
