"""Renders pages of HTML that need nothing but themselves.

    render("inspection.html.jinja", title="pairs.jsonl", about=about("inspect"), …)

Every text is escaped, because it may be what a model, a user or a file says. The page's own policy
forbids its browser to fetch anything, and to run any script but those that were written for it.
"""

import base64
import datetime
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jaxdpo.printable import visible

_ROOM = "jaxdpo.pages"


class Script(NamedTuple):
    """A script of a page.

    Attributes:
      text: Its source.
      digest: The digest by which the page's policy allows it.
    """

    text: Markup
    digest: str


def render(template: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """Renders a template of this room to a whole page.

    Args:
      template: Its file name.
      scripts: Sources of the scripts at its end; none for a page that needs none.
      values: What the template reads.

    Raises:
      jinja2.UndefinedError: If the template reads a value that is not given.
    """
    made = [_script(text) for text in scripts]
    page = environment().get_template(template)
    return page.render(style=style(), scripts=made, **values)


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the one environment of all pages; every value is escaped unless it is markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_ROOM),
        autoescape=True,
        finalize=_visible,
        # A page that lacks a figure is a defect, and not an empty cell.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Answers in any language stay readable in the source; NaN would be no JSON.
    environment.policies["json.dumps_function"] = functools.partial(
        json.dumps, ensure_ascii=False, allow_nan=False
    )
    environment.policies["json.dumps_kwargs"] = {}
    return environment


def style() -> Markup:
    """Returns the style sheet of all pages."""
    return Markup(_source("style.css"))


def page_script() -> str:
    """Returns the script that sorts tables and opens what is folded before printing."""
    return _source("page.js")


def today() -> str:
    """Returns the local date and time with its offset, to the minute."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")


@functools.cache
def _source(name: str) -> str:
    return files(_ROOM).joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> Script:
    if "</" in text:
        # An end tag within a string would end the script there.
        raise ValueError("a page's script may not contain '</'")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
    return Script(Markup(text), f"sha256-{digest}")


def _visible(value: Any) -> Any:
    # Markup was escaped when it was made; everything else is text of somebody's.
    return visible(value) if type(value) is str else value
