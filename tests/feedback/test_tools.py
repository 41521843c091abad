"""Exports of other tools, in the shapes that they document: what they make, and what they do not.

Argilla 2.8 `dataset.records.to_json`; Label Studio's task format and the tags Pairwise, Choices,
Ranker, TextArea; Open WebUI's `FeedbackModel` with its snapshot; Chainlit 2.12 `ThreadDict`; Gradio
6.31 `ChatCSVLogger`; Langfuse 5 observations and scores.
"""

import csv
import json
from pathlib import Path
from uuid import UUID

import pytest

from jaxdpo.collect import main
from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.feedback.tools.outgoing import argilla_record, label_studio_task

ASKED = [{"role": "user", "content": "When?"}]


def made(tool, records, tmp_path, **settings):
    path = tmp_path / f"{tool}.json"
    path.write_text(json.dumps(records))
    return collect(tool, str(path), FeedbackConfig(**settings))


def told(collected):
    return [
        (p.metadata["feedback"]["source"], p.chosen[0]["content"], p.rejected[0]["content"])
        for p in collected.pairs
    ]


def labels(collected):
    return [(p.chosen[0]["content"], p.label) for p in collected.labelled]


def argilla(**responses):
    record = argilla_record(ASKED, ["At 8.", "At 9."])
    given = {q: [{"value": v, "user_id": "u1"} for v in values] for q, values in responses.items()}
    return {**record, "responses": given, "metadata": {"batch": 3}, "_server_id": "s1"}


@pytest.mark.parametrize(
    ("responses", "pairs"),
    [
        ({"preference": ["response_2"]}, [("user_choice", "At 9.", "At 8.")]),
        ({"ranking": [["response_2", "response_1"]]}, [("criteria", "At 9.", "At 8.")]),
        (
            {"ranking": [[{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]]},
            [("criteria", "At 9.", "At 8.")],
        ),
        (
            {"response_1_quality": [2], "response_2_quality": [4]},
            [("criteria", "At 9.", "At 8.")],
        ),
        (
            {"preference": ["response_2"], "comment": ["The hours changed."]},
            [("user_choice", "At 9.", "At 8.")],
        ),
        (
            {"corrected_response_1": ["At nine."], "comment": ["The hours changed."]},
            [("expert_edits", "At nine.", "At 8.")],
        ),
    ],
)
def test_argilla(tmp_path, responses, pairs):
    collected = made("argilla", [argilla(**responses)], tmp_path)
    assert told(collected) == pairs
    [pair] = collected.pairs
    assert list(pair.prompt) == ASKED and pair.metadata["batch"] == 3
    known = pair.metadata["feedback"]
    if "comment" in responses:
        assert known["notes"] == ["The hours changed."] and known["annotator"] == "u1"


WRITTEN = Path(__file__).parent / "written"


def test_a_file_that_argilla_wrote():
    """The file was written by argilla 2.8.0: `JsonIO.to_json` of `Record`s with `Response`s.

    Its `JsonIO._records_from_json` reads what `argilla_record` makes, too.
    """
    collected = collect("argilla", str(WRITTEN / "argilla-2.8.0.json"))
    day, hour = "At 9, closed on Mondays.", "At 8."
    assert sorted(told(collected)) == [
        ("criteria", day, hour),
        ("criteria", day, hour),
        ("expert_edits", "At 9.", hour),
        ("user_choice", day, hour),
    ]
    asked = [{"role": "user", "content": "When does the museum open?"}]
    assert all(list(pair.prompt) == asked for pair in collected.pairs)
    [known] = [
        said for pair in collected.pairs
        if (said := pair.metadata["feedback"])["source"] == "user_choice"
    ]  # fmt: skip
    assert (known["notes"], known["annotator"]) == (["It names the day."], str(UUID(int=1)))
    assert {code: len(where) for code, where in collected.no_pair.items()} == {"no-response": 1}


def test_argilla_that_says_nothing_is_counted(tmp_path):
    records = [argilla(), argilla(preference=["tie"]), argilla(topic=["hours of opening"])]
    collected = made("argilla", records, tmp_path)
    assert set(collected.no_pair) == {"no-response", "tie", "not understood: topic"}
    with pytest.raises(
        Exception, match=r"argilla.json:1: has text; name the field with the prompt"
    ):
        made("argilla", [{"fields": {"text": "x"}, "responses": {"q": [{"value": 1}]}}], tmp_path)


def task(*results, **annotation):
    made = label_studio_task(ASKED, ["At 8.", "At 9."])
    whole = {"completed_by": 7, "created_at": "2026-05-04T09:00:00.1Z", "was_cancelled": False}
    return {"id": 1, **made, "annotations": [{**whole, "result": list(results), **annotation}]}


def result(name, kind, value, to="answer1,answer2"):
    return {"id": "x", "from_name": name, "to_name": to, "type": kind, "value": value}


@pytest.mark.parametrize(
    ("results", "pairs"),
    [
        ([result("pw", "pairwise", {"selected": "right"})], [("user_choice", "At 9.", "At 8.")]),
        # With a comment beside it, which is kept and is no choice.
        (
            [
                result("pw", "pairwise", {"selected": "right"}),
                result("why", "textarea", {"text": ["It is later."]}, "prompt"),
            ],
            [("user_choice", "At 9.", "At 8.")],
        ),
        (
            [
                result("best", "choices", {"choices": ["answer2"]}, "prompt"),
                result("why", "textarea", {"text": ["It is later."]}, "prompt"),
            ],
            [("user_choice", "At 9.", "At 8.")],
        ),
        # The names of the page's elements need not be those of the data.
        (
            [result("pw", "pairwise", {"selected": "left"}, "txt-1,txt-2")],
            [("user_choice", "At 8.", "At 9.")],
        ),
        (
            [result("best", "choices", {"choices": ["answer2"]}, "prompt")],
            [("user_choice", "At 9.", "At 8.")],
        ),
        (
            [
                result("polite", "choices", {"choices": ["Pass"]}, "answer2"),
                result("polite", "choices", {"choices": ["Fail"]}, "answer1"),
                result("why", "textarea", {"text": ["It greets."]}, "answer2"),
            ],
            [("criteria", "At 9.", "At 8.")],
        ),
        (
            [
                result("stars", "rating", {"rating": 4}, "answer1"),
                result("stars", "rating", {"rating": 2}, "answer2"),
            ],
            [("criteria", "At 8.", "At 9.")],
        ),
        (
            [result("rank", "ranker", {"ranker": {"rank": ["answer2", "answer1"]}}, "prompt")],
            [("criteria", "At 9.", "At 8.")],
        ),
        (
            [result("edited", "textarea", {"text": ["At nine."]}, "answer2")],
            [("expert_edits", "At nine.", "At 9.")],
        ),
    ],
)
def test_label_studio(tmp_path, results, pairs):
    collected = made("label_studio", [task(*results)], tmp_path)
    assert told(collected) == pairs
    assert list(collected.pairs[0].prompt) == ASKED


def test_a_cancelled_annotation_says_nothing(tmp_path):
    pick = result("pw", "pairwise", {"selected": "right"})
    collected = made("label_studio", [task(pick, was_cancelled=True)], tmp_path)
    assert (collected.pairs, list(collected.no_pair)) == ((), ["skipped"])


def open_webui(rating, siblings, children=("m2", "m3")):
    messages = {
        "m1": {"id": "m1", "parentId": None, "childrenIds": list(children), "role": "user",
               "content": "When?"},
        "m2": {"id": "m2", "parentId": "m1", "childrenIds": [], "role": "assistant",
               "content": "At 8.", "model": "sft"},
        "m3": {"id": "m3", "parentId": "m1", "childrenIds": [], "role": "assistant",
               "content": "At 9.", "model": "dpo"},
    }  # fmt: skip
    return {
        "id": "f1", "user_id": "u1", "version": 0, "type": "rating",
        "data": {"rating": rating, "model_id": "dpo", "sibling_model_ids": siblings,
                 "reason": "accurate", "comment": "", "tags": [], "details": {"rating": 9}},
        "meta": {"arena": False, "chat_id": "c1", "message_id": "m3", "message_index": 1},
        "snapshot": {"chat": {"id": "c1", "title": "Hours", "chat": {
            "history": {"messages": messages, "currentId": "m3"}, "models": ["sft", "dpo"]}}},
        "created_at": 1777885200, "updated_at": 1777885260,
    }  # fmt: skip


def test_open_webui(tmp_path):
    collected = made("open_webui", [open_webui(1, ["sft"])], tmp_path)
    assert told(collected) == [("user_choice", "At 9.", "At 8.")]
    assert labels(collected) == [("At 9.", True)]
    known = collected.pairs[0].metadata["feedback"]
    assert known["models"] == ["dpo", "sft"] and known["notes"] == ["accurate"]
    assert known["time"] == "2026-05-04T09:01:00+00:00" and known["conversation"] == "c1"
    worse = made("open_webui", [open_webui("-1", ["sft"])], tmp_path)
    assert told(worse) == [("user_choice", "At 8.", "At 9.")]
    # Regenerated by one model: a thumb says nothing about the other attempt.
    alone = made("open_webui", [open_webui(-1, None)], tmp_path)
    assert (told(alone), labels(alone)) == ([], [("At 9.", False)])


def test_chainlit(tmp_path):
    def step(kind, output, second, **more):
        time = f"2026-05-04T09:00:0{second}.000Z"
        return {"id": f"s{second}", "threadId": "t1", "type": kind, "output": output,
                "createdAt": time, "input": "", **more}  # fmt: skip

    thread = {
        "id": "t1", "createdAt": "2026-05-04T09:00:00.000Z", "name": "Hours", "userId": "u",
        "userIdentifier": "ann", "tags": None, "metadata": {}, "elements": [],
        "steps": [
            step("user_message", "When?", 1), step("run", "", 2), step("llm", "…", 3),
            step("assistant_message", "At 8.", 4,
                 feedback={"forId": "s4", "id": "f", "value": 0, "comment": "Wrong."}),
            step("user_message", "Really?", 5),
            step("assistant_message", "At 9.", 6, feedback={"forId": "s6", "value": 1}),
        ],
    }  # fmt: skip
    collected = made("chainlit", [thread, {**thread, "steps": thread["steps"][:1]}], tmp_path)
    assert labels(collected) == [("At 8.", False), ("At 9.", True)]
    assert [m["content"] for m in collected.labelled[1].prompt] == ["When?", "At 8.", "Really?"]
    assert collected.labelled[0].metadata["feedback"]["notes"] == ["Wrong."]
    assert list(collected.no_pair) == ["not-rated"]


def test_gradio(tmp_path):
    said = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "At 9."}]}]
    path = tmp_path / "log.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["conversation", "index", "value", "flag", "timestamp"])
        rows.writerow([json.dumps(said), 1, "Like", "2026-05-04 09:00:00.5"])
        rows.writerow([json.dumps([["When?", "At 8."]]), "[0, 1]", "Dislike", "2026-05-04"])
        rows.writerow([json.dumps(said), 1, "Spam", "2026-05-04"])
        # As older versions wrote a text that a spreadsheet could take for a formula.
        odd = [*ASKED, {"role": "assistant", "content": "9,-not 8"}]
        rows.writerow(["'" + json.dumps(odd), 1, "Like", "2026-05-04"])
    collected = collect("gradio", str(path))
    assert labels(collected) == [("At 9.", True), ("At 8.", False), ("9,-not 8", True)]
    assert collected.no_pair == {"flag: Spam": [f"{path}:4"]}


def test_langfuse(tmp_path):
    def observation(name, output):
        said = {"role": "assistant", "content": output}
        return {"id": name, "traceId": f"t{name}", "type": "GENERATION", "model": "dpo",
                "input": {"messages": ASKED}, "output": said}  # fmt: skip

    def score(name, observation, kind, value, **more):
        return {"id": f"s{observation}{name}", "trace_id": f"t{observation}", "name": name,
                "data_type": kind, "value": value, "source": "ANNOTATION",
                "author_user_id": "ann", "timestamp": "2026-05-04T09:00:00Z", **more}  # fmt: skip

    scores = [
        score("helpful", "a", "BOOLEAN", 1, string_value="True", comment="Right."),
        score("helpful", "b", "BOOLEAN", 0, string_value="False", observation_id="b"),
        score("fixed", "b", "CORRECTION", 0, string_value="At nine."),
        score("helpful", "a", "BOOLEAN", 0, source="EVAL"),
        score("helpful", "gone", "BOOLEAN", 1),
    ]
    one, two = tmp_path / "scores.jsonl", tmp_path / "observations.jsonl"
    # Scores may come before what they are about.
    one.write_text("".join(json.dumps(each) + "\n" for each in scores))
    two.write_text(
        "".join(json.dumps(observation(*each)) + "\n" for each in (("a", "At 9."), ("b", "At 8.")))
    )
    collected = collect("langfuse", [str(one), str(two)])
    assert sorted(told(collected)) == [
        ("criteria", "At 9.", "At 8."), ("expert_edits", "At nine.", "At 8.")
    ]  # fmt: skip
    assert set(collected.no_pair) == {"judged-by-a-model", "score-without-observation"}
    [first, _] = collected.judged
    assert (first.judgement.explanation, first.about["annotator"]) == ("Right.", "ann")


def test_the_command_takes_a_tool_and_trains_on_what_it_makes(tmp_path, capsys):
    files = []
    for i, choice in enumerate(("right", "left")):
        data = {**task(result("pw", "pairwise", {"selected": choice}))}
        data["data"] = {**data["data"], "messages": [{"role": "user", "content": f"q{i}"}]}
        files.append(tmp_path / f"project{i}.json")
        files[-1].write_text(json.dumps([data]))
    out = tmp_path / "pairs.jsonl"
    main(["label_studio", *map(str, files), "-o", str(out)])
    assert "2 pairs" in capsys.readouterr().out
    read = read_pairs(str(out), DataConfig(path=str(out), test_fraction=0)).pairs
    assert [pair.chosen[0]["content"] for pair in read] == ["At 9.", "At 8."]
