"""Names, tokens, bounds and other people's conversations, as asked for without the page."""

import json
import re
import socket
import time
import urllib.error
import urllib.request

import pytest

from jaxdpo.annotation.config import StudioConfig
from jaxdpo.cli.command import run_command
from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.feedback.store import FeedbackStore
from jaxdpo.studio import main


def ask(studio, path, body=None, cookie=None, **headers):
    """Returns the status and the text of a reply."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers}
    if cookie:
        sent["Cookie"] = f"studio={cookie}"
    request = urllib.request.Request(studio.url + path, data, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def acts(conversation, *events):
    return {"conversation": conversation, "events": [{"id": f"an-event-{i}", **e}
                                                     for i, e in enumerate(events)]}  # fmt: skip


@pytest.fixture
def begun(studio):
    """A studio in which ann has asked something that was answered."""
    here = studio()
    body = {"id": "prompt-1", "conversation": "chat/ann/c1", "text": "When?"}
    assert ask(here, "/api/ask", body, "ann")[0] == 200
    while len(FeedbackStore(here.folder).events()) < 3:
        pass
    return here


def test_an_act_counts_once_and_one_id_means_one_thing(begun):
    output = FeedbackStore(begun.folder).events()[1]["output"]
    body = acts("chat/ann/c1", {"event": "selected", "output": output})
    for _ in range(3):
        assert ask(begun, "/api/acts", body, "ann")[0] == 200
    assert len(FeedbackStore(begun.folder).events()) == 4
    body["events"][0]["event"] = "accepted"
    status, said = ask(begun, "/api/acts", body, "ann")
    assert status == 409 and "another act's id" in said


@pytest.mark.parametrize(
    ("body", "who", "status", "reason"),
    [
        (acts("chat/ann/c1", {"event": "tie", "outputs": ["x"]}), "bob", 403, "somebody else's"),
        (acts("chat/ann/c9", {"event": "skipped"}), "ann", 409, "no such conversation"),
        (acts("chat/ann/c1", {"event": "selected", "output": "x"}), "ann", 409, "not there any"),
        (acts("chat/ann/c1", {"event": "generated", "output": "x"}), "ann", 400, "an act is one"),
        (acts("chat/ann/c1", {"event": "skipped", "annotator": "bob"}), "ann", 400, "has no annot"),
        (acts("chat/ann/c1", {"event": "skipped", "time": "2020"}), "ann", 400, "has no time"),
        (acts("chat/ann/c1", {"event": "note", "text": 3}), "ann", 400, "text is 3"),
        (acts("chat/ann/c1"), "ann", 400, "1 to 20 acts"),
        ({"conversation": 3, "events": []}, "ann", 403, "somebody else's"),
        ([1, 2], "ann", 403, "somebody else's"),
        (acts("chat/ann/c1", {"event": "note", "text": "half \ud800"}), "ann", 400, "half a char"),
        (acts("chat/ann/c1", {"event": "note", "text": "\0"}), "ann", 400, "remove it"),
        (b'{"events": NaN}', "ann", 400, "write a number"),
        (b"{", "ann", 403, "somebody else's"),
        (b"[" * 100_000, "ann", 403, "somebody else's"),
    ],
)
def test_what_is_no_act_of_ones_own_is_refused(begun, body, who, status, reason):
    before = FeedbackStore(begun.folder).events()
    got, said = ask(begun, "/api/acts", body, who)
    assert (got, reason in said) == (status, True), said
    assert FeedbackStore(begun.folder).events() == before


def test_a_foreign_page_and_a_large_body_are_refused(begun):
    body = {"id": "prompt-2", "conversation": "chat/ann/c2", "text": "When?"}
    for headers, status in (
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example:80"}, 421),
    ):
        assert ask(begun, "/api/ask", body, "ann", **headers)[0] == status
    assert ask(begun, "/api/ask", {**body, "text": "x" * (1 << 20)}, "ann")[0] == 413
    assert ask(begun, "/static/..%2fconfig.py")[0] == 404
    assert ask(begun, "/chat", None, "ann")[0] == 200


def test_a_client_that_still_sends_is_told_why_it_is_refused(begun):
    part = b"x" * (1 << 19)
    head = (
        "POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {8 * len(part)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", begun.port), timeout=30) as connection:
        connection.sendall(head.encode())
        for _ in range(8):
            # With pauses: a connection that was closed would be reset in one of them.
            time.sleep(0.03)
            connection.sendall(part)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 413 ") and b"a request may have 1024 KiB" in reply


def run_of(folder, losses):
    """A run of two optimizer steps, as far as its page needs it."""
    folder.mkdir(parents=True)
    config = load_config(None, ["model.path=m", "data.path=d", f"training.folder={folder}"])
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    (folder / "inputs.json").write_text("{}")
    records = [
        {"step": step, "split": split, "loss": loss, "rewards/margins": -loss}
        for step, loss in enumerate(losses, 1)
        for split in ("TRAIN", "TEST")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_compare_shows_the_curves_of_the_models_runs(studio, tmp_path):
    first, second = run_of(tmp_path / "a", (0.7, 0.5)), run_of(tmp_path / "b <i>", (0.6, 0.25))
    broken = run_of(tmp_path / "c", ())
    (broken / "config.yaml").write_text("model: 3")
    # A run, an export of one, a run whose files cannot be read, and what came of no run.
    models = {"dpo": str(first), "<b>": str(second / "model"), "c": str(broken), "hub": "org/name"}
    status, page = ask(studio(models=models), "/compare", None, "ann")
    assert status == 200
    shown = page[page.index("<h2>Training runs") :]
    pictures = re.findall(r"<svg[^>]*>", shown)
    # Loss and margin of each run, and TEST loss and margin and TRAIN loss of both together.
    assert len(pictures) == 3 + 2 + 2
    # The page's policy lets no style through but that of its own sheet.
    assert not any("style=" in picture for picture in pictures)
    both = next(picture for picture in pictures if "TEST loss" in picture)
    for said in ("dpo", "&lt;b&gt;", "0.7", "0.25"):
        assert said in both
    assert f"dpo: {first}" in shown and f"&lt;b&gt;: {tmp_path}/b &lt;i&gt;" in shown
    assert "config.yaml: cannot be read by this version" in shown
    assert "org/name" not in shown and "<i>" not in shown


def test_tokens_say_who_it_is(studio):
    here = studio(annotators={"ann": "a" * 20, "bob": "b" * 20})
    assert "Log in" in ask(here, "/chat")[1]
    assert ask(here, "/api/review", None, "ann")[0] == 401
    assert ask(here, "/export/events.jsonl")[0] == 401
    assert ask(here, "/api/login", {"name": "c" * 20})[0] == 403
    assert ask(here, "/api/login", {"name": "a" * 20})[0] == 200
    body = {"id": "prompt-1", "conversation": "chat/ann/c1", "text": "When?"}
    assert ask(here, "/api/ask", body, "b" * 20)[0] == 403
    assert ask(here, "/api/ask", body, "a" * 20)[0] == 200
    assert FeedbackStore(here.folder).events()[0]["annotator"] == "ann"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set models to models that answer"),
        ({"models": ["m"], "sampling": {"temperature": 0}}, "side by side would be the same"),
        ({"models": ["m"], "host": "0.0.0.0"}, "open to other machines; set annotators"),
        ({"models": ["m"], "annotators": {"ann": "short"}}, "has a token of 5 characters"),
        ({"models": ["m"], "annotators": {"a/b": "x" * 16}}, "'a/b' is no name"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        StudioConfig(**settings)


def test_models_are_named_by_their_places():
    named = StudioConfig(models=["models/sft", "runs/dpo/model"]).models
    assert named == {"sft": "models/sft", "dpo": "runs/dpo/model"}
    warm = StudioConfig(models=["m"], sampling={"max_new_tokens": 9}).sampling
    assert (warm.temperature, warm.max_new_tokens) == (1.0, 9)
    same = StudioConfig(models=["a/sft", "b/sft"]).models
    assert same == {"a/sft": "a/sft", "b/sft": "b/sft"}


def test_rows_without_answers_need_a_model(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "When?"}) + "\n")
    monkeypatch.setattr("sys.argv", ["studio", f"data={rows}", f"folder={tmp_path / 'f'}"])
    assert run_command(main) == 2
    assert f"{rows}:1: has no answer, and 1 of 1 rows are like it" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_a_corrupt_store_is_one_message(tmp_path):
    (tmp_path / "feedback.sqlite3").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(UserError, match=r"feedback.sqlite3: cannot be opened"):
        FeedbackStore(tmp_path)
