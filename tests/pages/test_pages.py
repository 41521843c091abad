"""Pages escape what others wrote and fetch nothing; plots say what their figures are."""

import base64
import hashlib
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from jaxdpo.pages.cells import Table, figure, interval, number, text_block
from jaxdpo.pages.intervals import Bar, draw_intervals
from jaxdpo.pages.lines import Curve, draw_lines, smoothed, thinned
from jaxdpo.pages.page import environment, page_script, render
from jaxdpo.pages.svg import Axis, axis_over

NASTY = '</script><img src=x onerror="alert(1)"> & <b>\x1b]0;owned\x07'


def test_text_in_a_page_is_never_markup():
    macro = getattr(environment().get_template("parts.html.jinja").module, "table")  # noqa: B009
    html = macro(Table(NASTY, (NASTY,), [(NASTY,), (text_block(NASTY),)], sortable=True))
    assert "<img" not in html and "<b>" not in html and "\x1b" not in html and "\x07" not in html
    shown = NASTY.replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    assert unescape(html).count(shown) == 5
    svg = draw_lines(NASTY, NASTY, [Curve(NASTY, [(0, 1.0), (1, 2.0)])])
    assert "<img" not in svg and "\x1b" not in svg
    ElementTree.fromstring(svg)


def test_a_page_allows_its_own_scripts_alone():
    html = render(
        "comparison.html.jinja", scripts=[page_script()], title="t", verdict="v", mark="m",
        figures=Table("", (), ()), curves=[], left_out=[], settings=Table("", (), ()),
        verdicts=[], warnings=[], about="a",
    )  # fmt: skip
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r"https?://|\son\w+=", html)
    with pytest.raises(ValueError, match="</"):
        render("comparison.html.jinja", scripts=["'</script>'"])


def test_numbers_carry_their_exact_value():
    value = 0.6931471805599453
    assert number(value) == Markup(f'<data value="{value!r}">0.6931</data>')
    assert number(float("nan")) == number(None) == "–"
    assert (figure(12), figure(1e6), figure(0.00001234)) == ("12", "1,000,000", "1.234e-05")
    assert re.findall(r'value="([^"]*)"', interval(0.5, 0.25, 0.75)) == ["0.5", "0.25", "0.75"]


def test_a_smoothed_curve_is_the_mean_of_a_twentieth():
    points = [(step, float(step % 2)) for step in range(40)]
    found = smoothed(points)
    # A twentieth of 40 points is two: 0, (0 + 1) / 2, (1 + 0) / 2, …
    assert [value for _, value in found] == [0.0] + [0.5] * 39
    assert [step for step, _ in found] == list(range(40))


def test_thinning_keeps_the_spikes():
    rng = np.random.default_rng(0)
    points = [(step, float(value)) for step, value in enumerate(rng.normal(size=50_000))]
    points[31_234] = (31_234, 99.0)
    points[7] = (7, -99.0)
    kept = thinned(points)
    assert len(kept) <= 600 and {(31_234, 99.0), (7, -99.0)} <= set(kept)
    assert kept == sorted(kept) and set(kept) <= set(points)
    assert thinned(points[:600]) == points[:600]


def test_a_plot_has_title_axes_units_and_words():
    curves = [
        Curve("", [(1, 3.0), (2, 2.0)], kind="faint"),
        Curve("TEST", [(0, 2.0), (10, 0.5)], [(10, 0.4, 0.6)], 1, "dots"),
        Curve("none", [(0, float("nan"))]),
    ]
    svg = draw_lines("Loss", "nats a pair", curves)
    root = ElementTree.fromstring(svg)
    texts = [each.text for each in root.iter("text")]
    assert {"Loss", "nats a pair", "optimizer step", "TEST"} <= set(texts)
    assert root.get("role") == "img"
    assert root.get("aria-label") == (
        "Loss, in nats a pair: TEST from 2 at step 0 to 0.5 at step 10 (95% interval 0.4 to 0.6)."
    )
    # The scale holds the curves and the interval; a higher value stands higher in the picture.
    up = axis_over([3.0, 2.0, 0.5, 0.4, 0.6], 176, 30)
    assert up.low < 0.4 < 3.0 < up.high and up(3.0) < up(0.4)


def test_a_legend_takes_the_rows_that_it_needs():
    names = [f"runs/sweep/loss.beta={k},optimizer.learning_rate=1e-{k}" for k in range(6)]
    root = ElementTree.fromstring(draw_lines("t", "u", [Curve(n, [(0, 1.0)]) for n in names]))
    bottom = float(root.get("viewBox", "").split()[3])
    rows = {float(e.get("y", 0)) for e in root.iter("text") if (e.text or "").startswith("…")}
    assert len(rows) == 6 and max(rows) < bottom


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(expected)


def test_bars_are_as_long_as_their_figures():
    groups = [("short", [Bar("sft", 0.2, 0.1, 0.4), Bar("dpo", 0.8, 0.6, 0.9)])]
    svg = draw_intervals("pass rate", "answers that pass", groups, share=True)
    root = ElementTree.fromstring(svg)
    # Shares have a scale from 0 to 100%, whatever they are.
    bars = [e for e in root.iter("line") if e.get("stroke-width") == "8"]
    lengths = [float(bar.get("x2", 0)) - float(bar.get("x1", 0)) for bar in bars]
    assert lengths[1] == pytest.approx(4 * lengths[0], abs=0.5)
    assert "dpo 80% (60% to 90%)" in root.get("aria-label", "")
    undefined = draw_intervals("s", "score", [("x", [Bar("a", float("nan"))])])
    ElementTree.fromstring(undefined)
