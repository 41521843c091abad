"""Acts of people on the page: each makes the pairs that it must, and none is lost."""

import json
import os
import random
import re
from pathlib import Path

import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.writing import write_pairs
from jaxdpo.evaluation.human_agreement import read_human_judgements
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.human_judgements import write_alignment
from jaxdpo.feedback.store import FeedbackStore

KILLS = int(os.environ.get("JAXDPO_TEST_KILLS", "3"))


def told(studio):
    return sorted(
        (
            pair.metadata["feedback"]["source"],
            pair.chosen[0]["content"].strip(),
            pair.rejected[0]["content"].strip(),
        )
        for pair in collect("events", str(studio.folder)).pairs
    )


def trained(studio, tmp_path):
    """Pairs as a run reads them, after the folder was collected to a file."""
    out = tmp_path / "pairs.jsonl"
    write_pairs(collect("events", str(studio.folder)).pairs, out)
    return read_pairs(str(out), DataConfig(path=str(out), test_fraction=0)).pairs


def ask(page, text):
    before = page.locator(".turn").count()
    page.fill("#text", text)
    page.click("#ask button")
    page.locator(".turn").nth(before).wait_for()
    page.locator(".answers:not(.earlier) [data-focus='accept-0']").wait_for()


def texts(page):
    return [
        text.strip()
        for text in page.locator(
            ".answers:not(.earlier) .answer > .text:not(.edited)"
        ).all_inner_texts()
    ]


def press(page, key):
    """Presses a key and waits until the server has kept what it means."""
    with page.expect_response(re.compile("/api/(acts|answer|review)")) as reply:
        page.keyboard.press(key)
    assert reply.value.ok
    return reply.value.json()


def leave_fields(page):
    page.locator("h1").click()


def test_a_choice_by_a_click(studio, visit, tmp_path):
    here = studio()
    page = visit(here, "/chat", "ann")
    ask(page, "When does it open?")
    first, second = texts(page)
    # Who answered is not told before the choice.
    assert "model:" not in page.locator("#turns").inner_text()
    page.click("[data-focus=choose-1]")
    page.locator(".answer.chosen").wait_for()
    assert "model:" in page.locator("#turns").inner_text()
    assert told(here) == [("user_choice", second, first)]
    [pair] = trained(here, tmp_path)
    assert [message["content"] for message in pair.prompt] == ["When does it open?"]
    known = pair.metadata["feedback"]
    assert known["places"] == [1, 0] and known["annotator"] == "ann"
    assert sorted(known["models"]) == ["dpo", "sft"]
    # The conversation goes on with the chosen answer.
    ask(page, "And on Monday?")
    press_prompt = FeedbackStore(here.folder).events()[-3]
    assert [m["content"].strip() for m in press_prompt["messages"]] == [
        "When does it open?", second, "And on Monday?"
    ]  # fmt: skip


def test_regenerating_until_one_is_accepted_by_keys(studio, visit):
    here = studio(answers=1)
    page = visit(here, "/chat")
    ask(page, "When does it open?")
    [first] = texts(page)
    leave_fields(page)
    press(page, "r")
    page.locator(".answers.earlier").wait_for()
    page.locator(".answers:not(.earlier) [data-focus='accept-0']").wait_for()
    [second] = texts(page)
    press(page, "a")
    assert told(here) == [("regenerations", second, first)]


def test_an_edit_that_is_saved(studio, visit):
    here = studio()
    page = visit(here, "/chat")
    ask(page, "When does it open?")
    first, second = texts(page)
    leave_fields(page)
    press(page, "1")
    page.locator(".answer.chosen").wait_for()
    page.keyboard.press("e")
    page.locator("[data-focus=editor-0]").fill("It opens at nine o'clock, every day.")
    # Typed and not saved yet: a reload must not lose it.
    page.reload()
    page.locator("[data-focus=edit-0]").click()
    assert page.locator("[data-focus=editor-0]").input_value().startswith("It opens at nine")
    page.locator("[data-focus=editor-0]").press("Control+Enter")
    page.locator(".answer.accepted").wait_for()
    saved = "It opens at nine o'clock, every day."
    assert told(here) == sorted([("user_choice", first, second), ("user_edits", saved, first)])


@pytest.fixture
def rows(tmp_path):
    """Two prompts with two answers each, and one with none."""
    path = tmp_path / "rows.jsonl"
    asked = [
        [{"role": "user", "content": f"Question {i}?"}] for i in range(3)
    ]  # fmt: skip
    lines = [
        {"messages": asked[i], "completion": f"{name}{i}", "model": name, "split": "TEST"}
        for i in range(3) for name in ("left", "right")
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"data": {"path": str(path)}, "models": {}}


def test_an_experts_edits_and_judgements_by_keys(studio, visit, rows, tmp_path):
    short = {"name": "word_limit", "limit": 3, "label": "short"}
    here = studio(**rows, criteria=[short, {"name": "json"}])
    page = visit(here, "/review", "ann")
    page.locator(".answer").first.wait_for()
    first, second = texts(page)
    leave_fields(page)
    # Row 1: PASS for the first answer, FAIL with a reason for the second.
    press(page, "p")
    page.keyboard.press("j")
    page.keyboard.press("w")
    page.locator("[data-focus='why-1-short']").fill("It rambles.")
    page.keyboard.press("Escape")
    press(page, "f")
    page.locator("[data-focus='FAIL-1-short'][aria-pressed=true]").wait_for()
    press(page, "Enter")
    # Row 2: an expert's edit of the second answer.
    page.locator(".said", has_text="Question 1?").wait_for()
    edited = texts(page)[1]
    page.keyboard.press("j")
    page.keyboard.press("e")
    page.locator("[data-focus=editor-1]").fill("At nine.")
    page.locator("[data-focus=editor-1]").press("Control+Enter")
    page.locator(".edited").wait_for()
    assert told(here) == sorted([("criteria", first, second), ("expert_edits", "At nine.", edited)])
    collected = collect("events", str(here.folder))
    write_alignment(collected.judged, None, tmp_path / "alignment.jsonl")
    people = read_human_judgements(str(tmp_path / "alignment.jsonl"))
    assert [(p.example.completion, p.passed, p.explanation) for p in people] == [
        (first, True, ""), (second, False, "It rambles.")
    ]  # fmt: skip
    # Row 3 is skipped, and the skip undone from the row before it.
    leave_fields(page)
    press(page, "Enter")
    page.locator(".said", has_text="Question 2?").wait_for()
    with page.expect_response(re.compile("/api/review")):
        page.keyboard.press("s")
    page.locator("#status", has_text="No rows are left").wait_for()
    assert page.locator("#count").inner_text() == "2 done, 1 skipped, 3 in all"
    press(page, "ArrowLeft")
    page.locator(".said", has_text="Question 2?").wait_for()
    press(page, "u")
    press(page, "1")
    assert collect("events", str(here.folder)).no_pair == {}
    # With the next criterion the same keys judge by that one.
    press(page, "p")
    page.keyboard.press("c")
    press(page, "f")
    said = [(e["criterion"], e["passed"]) for e in FeedbackStore(here.folder).events()
            if e["event"] == "judged"][-2:]  # fmt: skip
    assert said == [("short", True), ("json", False)]
    press(page, "u")
    press(page, "u")
    # The page shows how far the judge agrees: "short" passes both answers, a person one of them.
    page.goto(here.url + "/data")
    page.click("#judges")
    page.locator("#judged li", has_text="short: agrees with people on 0.500").wait_for()


def test_ties_thumbs_notes_and_undo(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    ask(page, "When does it open?")
    first, second = texts(page)
    leave_fields(page)
    press(page, "2")
    press(page, "t")
    assert list(collect("events", str(here.folder)).no_pair) == ["tie"]
    press(page, "b")
    labelled = collect("events", str(here.folder)).labelled
    assert {pair.label for pair in labelled} == {False} and len(labelled) == 2
    press(page, "u")
    press(page, "u")
    page.fill("#note", "Ask the museum.")
    page.keyboard.press("Enter")
    page.locator("text=Note: Ask the museum.").wait_for()
    leave_fields(page)
    press(page, "+")
    collected = collect("events", str(here.folder))
    assert told(here) == [("user_choice", second, first)]
    assert collected.pairs[0].metadata["feedback"]["notes"] == ["Ask the museum."]
    [thumb] = collected.labelled
    assert (thumb.chosen[0]["content"].strip(), thumb.label) == (second, True)


def test_two_annotators_at_once(studio, visit, rows):
    here = studio(**rows, overlap=2)
    pages = {name: visit(here, "/review", name) for name in ("ann", "bob")}
    for page in pages.values():
        page.locator(".answer").first.wait_for()
        leave_fields(page)
    for row in range(3):
        # Both have the same row open, in an order of answers of their own; Bob differs on row 1.
        for name, page in pages.items():
            page.locator(".said", has_text=f"Question {row}?").wait_for()
            better = "left" if (name, row) != ("bob", 1) else "right"
            place = texts(page).index(f"{better}{row}")
            press(page, str(place + 1))
            page.locator(".answer.chosen").wait_for()
            press(page, "Enter")
    for page in pages.values():
        page.locator("#status", has_text="No rows are left").wait_for()
        assert page.locator("#count").inner_text() == "3 done, 0 skipped, 3 in all"
    collected = collect("events", str(here.folder))
    assert [(each.what, each.judgements) for each in collected.agreements] == [("two answers", 3)]
    assert collected.agreements[0].agreed.value == pytest.approx(2 / 3)
    assert (collected.conflicts, len(collected.pairs)) == (1, 4)
    # The page tells both people's progress, and what they disagree on.
    page = pages["ann"]
    page.goto(here.url + "/data")
    shown = page.locator("main").inner_text()
    assert re.search(r"ann\s+3\s+0", shown) and re.search(r"bob\s+3\s+0", shown)
    assert re.search(r"Question 1\?: (ann against bob|bob against ann)", shown)


def test_a_reload_and_a_second_tab_show_the_same(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    ask(page, "When does it open?")
    page.click("[data-focus=choose-0]")
    page.locator(".answer.chosen").wait_for()
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".answer.chosen").wait_for()
    assert other.locator("#turns").inner_text() == page.locator("#turns").inner_text()
    # The second tab changes its mind; the first, when it is looked at again, knows.
    other.click("[data-focus=choose-1]")
    other.locator(".answer[data-place='1'].chosen").wait_for()
    page.reload()
    page.locator(".answer[data-place='1'].chosen").wait_for()
    assert len(told(here)) == 1


def test_a_lost_connection_loses_no_act(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    ask(page, "When does it open?")
    first, second = texts(page)
    page.context.set_offline(True)
    page.click("[data-focus=choose-1]")
    page.locator("#status.bad", has_text="1 act waits").wait_for()
    page.click("text=Tie")
    page.locator("#status.bad", has_text="2 acts wait").wait_for()
    assert told(here) == []
    page.context.set_offline(False)
    page.locator("#status:not(.bad)", has_text="Saved.").wait_for()
    page.locator(".tag", has_text="tie").first.wait_for()
    assert list(collect("events", str(here.folder)).no_pair) == ["tie"]
    press(page, "u")
    assert told(here) == [("user_choice", second, first)]


def test_kill_9_loses_no_act_that_the_page_confirmed(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    draw = random.Random(7)
    confirmed = []

    def note(reply):
        # Only what the page got a good answer to: this is what it shows as saved.
        if reply.url.endswith(("/api/acts", "/api/ask")) and reply.ok:
            body = reply.request.post_data_json
            confirmed.extend(each["id"] for each in body.get("events", [body]))

    page.on("response", note)
    ask(page, "When does it open?")
    for kill in range(KILLS):
        # The server dies at any moment: before, while or after it keeps an act.
        for place in range(draw.randrange(1, 4)):
            page.click(f"[data-focus=choose-{(kill + place) % 2}]")
        page.wait_for_timeout(draw.random() * 20)
        here.kill()
        page.click(f"[data-focus=choose-{kill % 2}]")
        here.start()
        page.locator("#status:not(.bad)", has_text="Saved.").wait_for()
        if kill == KILLS // 2:
            page.reload()
            page.locator("[data-focus=choose-0]").wait_for()
    kept = [event["id"] for event in FeedbackStore(here.folder).events()]
    assert len(kept) == len(set(kept))
    assert len(confirmed) > 2 * KILLS and set(confirmed) <= set(kept)
    print(f"{KILLS} kills, {len(confirmed)} confirmed acts, none lost")
    # Nothing waits in the browser any more, and every click was kept.
    assert page.evaluate("Object.keys(localStorage).filter((k) => k.startsWith('outbox:'))") == []


def test_what_a_model_or_a_user_says_stays_text(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    ask(page, "hostile <b>user</b> {{ 7 * 7 }}")
    assert all(text.startswith("</script><img src=x onerror=") for text in texts(page))
    assert page.locator("main img, main b, main script").count() == 0
    page.fill("#note", "<script>document.title='owned'</script>")
    page.keyboard.press("Enter")
    page.locator("text=Note: <script>").wait_for()
    leave_fields(page)
    press(page, "1")
    page.goto(here.url + "/data")
    page.locator("details", has_text="hostile").click()
    assert "<img src=x onerror=" in page.locator("main").inner_text()
    assert page.locator("main img, main b, main script").count() == 0
    assert page.title() == "Data – studio"


def test_a_model_that_fails_is_said_and_asked_again(studio, visit):
    here = studio()
    page = visit(here, "/chat", "ann")
    page.fill("#text", "broken")
    page.click("#ask button")
    page.locator("#status.bad", has_text="the model broke").wait_for()
    page.locator("[data-focus=again]").click()
    page.locator("#status.bad", has_text="the model broke").wait_for()
    assert told(here) == []


def test_a_blind_match_grows(studio, visit, rows):
    here = studio(data=rows["data"])
    page = visit(here, "/compare", "ann")
    page.click("#begin")
    for row in range(3):
        page.locator(".said", has_text=f"Question {row}?").wait_for()
        page.locator("[data-focus=choose-0]").wait_for()
        names = [text.split(" ")[0] for text in texts(page)]
        assert sorted(names) == ["dpo", "sft"]
        leave_fields(page)
        press(page, str(names.index("dpo") + 1))
        page.locator("#score", has_text=f"{row + 1} comparisons").wait_for()
    assert (
        page.locator("#score")
        .inner_text()
        .startswith("sft wins 0% against dpo (95% interval 0 to 56")
    )
    press(page, "u")
    page.goto(here.url + "/compare")
    page.click("#begin")
    page.locator("#score", has_text="2 comparisons").wait_for()
    # And both, side by side, with their names.
    page.fill("#prompt", "Hello?")
    page.click("text=Answer >> nth=0")
    for name in ("sft", "dpo"):
        page.locator(f"#answers [data-model={name}] .text", has_text=f"{name} says no.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_are_accessible(studio, visit, rows, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    source = (Path(axe.__path__[0]) / "axe.min.js").read_text(encoding="utf-8")
    here = studio(
        data=rows["data"], criteria=[{"name": "word_limit", "limit": 3, "label": "short"}]
    )
    shots = os.environ.get("JAXDPO_TEST_SCREENSHOTS")
    page = visit(here, "/chat", "ann", color_scheme=scheme, viewport={"width": 1280, "height": 900})
    ask(page, "When does it open? " + "Supercalifragilistic" * 12)
    leave_fields(page)
    press(page, "1")
    chat = page.url.removeprefix(here.url)
    for path in (chat, "/review", "/compare", "/data", "/login"):
        page.goto(here.url + path)
        if path == "/compare":
            page.click("#begin")
        if path not in ("/data", "/login"):
            page.locator(".answer [data-focus=choose-0]").wait_for()
        if path == "/review":
            page.keyboard.press("e")
        for summary in page.locator("details > summary").all():
            summary.click()
        for width in (400, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide at {width}"
            name = path.split("?")[0].strip("/")
            if shots:
                page.screenshot(path=f"{shots}/{name}-{width}-{scheme}.png", full_page=True)
        found = page.evaluate(source + "\naxe.run(document)")["violations"]
        serious = [(each["id"], each["nodes"][0]["html"][:120]) for each in found
                   if each["impact"] in ("serious", "critical")]  # fmt: skip
        assert serious == [], path
