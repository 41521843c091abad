"""The LLM judge against a real HTTP server: what it says, what goes wrong, and what is paid."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Example
from jaxdpo.evaluation.judges.client import ATTEMPTS, JudgeConfig
from jaxdpo.evaluation.judges.llm import judge_criterion, parse_rated, parse_verdict
from tests.chat_server import Response, serving
from tests.folders import write_model

ASKED = [{"role": "user", "content": "When does it open?"}]


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Makes a judge at a server, with a cache of the test's own."""
    monkeypatch.setenv("JAXDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(server, **settings):
        settings = {"instructions": "It is right.", "model": "m", "timeout": 5.0, **settings}
        return judge_criterion(JudgeConfig(base_url=server.url, **settings))

    return make


def examples(count):
    return [Example(ASKED, f"answer {i}") for i in range(count)]


def answer_in(body):
    return json.loads(body["messages"][1]["content"])["answer"]


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        ("Fine.\nPASS", True),
        ("Too long,\nand wrong.\n\n FAIL \n", False),
        ("PASS", True),
        ("Fine. PASS", None),
        ("PASS\nBecause it is fine.", None),
        ("Fine.\n**PASS**", None),
        ("Fine.\npass", None),
        ("Fine.\nPASS FAIL", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_strictly(reply, passed):
    verdict = parse_verdict(reply)
    assert (verdict and verdict.passed) == passed


@pytest.mark.parametrize(
    ("reply", "passed", "score"),
    [
        ("Fine.\nPASS 0.9", True, 0.9),
        ("PASS 1", True, 1.0),
        ("No.\nFAIL 0.05", False, 0.05),
        ("FAIL 0", False, 0.0),
        ("Hm.\nFAIL 0.5", False, 0.5),
        # The verdict and the number must say the same, and be all that there is.
        ("PASS 0.1", None, None),
        ("FAIL 0.9", None, None),
        ("PASS", None, None),
        ("PASS 1.5", None, None),
        ("PASS -0.9", None, None),
        ("PASS 90%", None, None),
        ("PASS 9e-1", None, None),
        ("PASS  0.9", None, None),
        ("PASS nan", None, None),
        ("0.9", None, None),
    ],
)
def test_a_confidence_is_read_strictly(reply, passed, score):
    judgement = parse_rated(reply)
    assert (judgement and judgement.passed, judgement and judgement.score) == (passed, score)


def test_a_confidence_is_asked_for_and_kept_as_the_score(judge):
    def respond(body, number):
        return Response("Fine.\nPASS 0.8" if number else "Fine.\nPASS")

    with serving(respond) as server:
        [said] = judge(server, confidence=True).judge(examples(1))
    assert (said.passed, said.score, said.value) == (True, 0.8, 0.8)
    first, second = server.requests
    assert "PASS 0.9" in first["messages"][0]["content"]
    assert "a number from 0 to 1" in second["messages"][-1]["content"]


def test_a_judge_sees_tools_calls_and_the_datas_answer(judge):
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look"}}
    gold = {"role": "assistant", "content": "At 9."}
    whole = Example(ASKED, "", {}, (tool,), (call,), (gold,))
    with serving(lambda body, number: Response()) as server:
        list(judge(server, concurrency=1).judge([whole, Example(ASKED, "At 8.")]))
    rich, plain = server.requests
    assert json.loads(rich["messages"][1]["content"]) == {
        "conversation": ASKED, "answer": "", "tools": [tool], "tool_calls": [call],
        "reference": [gold],
    }  # fmt: skip
    assert '"reference" is an answer of the data set' in rich["messages"][0]["content"]
    # Where there is none of them, the question says nothing of them.
    assert set(json.loads(plain["messages"][1]["content"])) == {"conversation", "answer"}
    assert "reference" not in plain["messages"][0]["content"]


def test_judgements_are_in_order_and_counted(judge):
    def respond(body, number):
        time.sleep(0.02 * (number % 3))
        even = int(answer_in(body).split()[1]) % 2 == 0
        return Response("Even.\nPASS" if even else "Odd.\nFAIL")

    with serving(respond) as server:
        criterion = judge(server, prices=(2.0, 10.0))
        said = list(criterion.judge(examples(12)))
    assert [each.passed for each in said] == [True, False] * 6
    assert [each.explanation for each in said] == ["Even.", "Odd."] * 6
    usage = criterion.usage()
    assert (usage["requests"], usage["prompt_tokens"], usage["completion_tokens"]) == (12, 120, 60)
    assert usage["cost"] == pytest.approx(120 * 2e-6 + 60 * 10e-6)
    body = server.requests[0]
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert "It is right." in body["messages"][0]["content"]
    assert json.loads(body["messages"][1]["content"])["conversation"] == ASKED


def test_nothing_is_paid_for_twice(judge):
    with serving(lambda body, number: Response()) as server:
        first = judge(server)
        list(first.judge([*examples(3), *examples(3)]))
        assert len(server.requests) == 3
        again = judge(server)
        assert all(each.passed for each in again.judge(examples(3)))
        assert len(server.requests) == 3
        assert again.usage()["from_cache"] == 3 and again.usage()["cost"] == 0
        # What would be said to something else is another judgement.
        for changed in ({"model": "n"}, {"instructions": "It is short."}, {"temperature": 1.0}):
            list(judge(server, **changed).judge(examples(1)))
        assert len(server.requests) == 6


def test_what_cannot_be_read_is_asked_again_and_then_no_judgement(judge):
    def respond(body, number):
        if answer_in(body) == "answer 1":
            return Response("I like it.")
        if answer_in(body) == "answer 2" and len(body["messages"]) == 2:
            return Response("Hm.")
        return Response()

    with serving(respond) as server:
        criterion = judge(server)
        said = list(criterion.judge(examples(3)))
        assert [each.passed for each in said] == [True, None, True]
        assert not said[1].judged
        assert f"not reply as asked in {ATTEMPTS} attempts; the last: 'I like it.'" in (
            said[1].explanation
        )
        assert len(server.requests) == 1 + ATTEMPTS + 2
        # The judge sees what it said, and what was wrong with it.
        assert [m["role"] for m in server.requests[-1]["messages"]] == [
            "system", "user", *("assistant", "user") * (ATTEMPTS - 1)
        ]  # fmt: skip
        assert list(judge(server).judge(examples(3))) == said
        assert len(server.requests) == 1 + ATTEMPTS + 2


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (Response(body="<html>"), "no chat completion"),
        (Response(body="{}"), "no chat completion"),
        (Response(body='{"choices": []}'), "no chat completion"),
        (Response(body='{"choices": [{"finish_reason": "stop"}]}'), "no chat completion"),
        (Response(None), "its reply was empty"),
        (Response("It is\nPASS", finish_reason="length"), "cut off; raise max_tokens"),
        (Response(status=400), "the server refuses the request"),
        (Response(status=413), "the server refuses the request"),
        (Response(status=422), "the server refuses the request"),
    ],
)
def test_malformed_answers_are_no_judgement(judge, response, problem):
    with serving(lambda body, number: response) as server:
        [said] = judge(server).judge(examples(1))
    assert not said.judged and problem in said.explanation


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(judge, status):
    def respond(body, number):
        return Response(status=status) if number < 2 else Response()

    with serving(respond) as server:
        criterion = judge(server)
        assert [each.passed for each in criterion.judge(examples(1))] == [True]
        assert len(server.requests) == 3
        assert criterion.usage()["requests"] == 1


def test_a_server_that_stays_in_trouble_stops_the_judge(judge):
    with serving(lambda body, number: Response(status=429)) as server:
        criterion = judge(server, retries=2, concurrency=1)
        with pytest.raises(UserError, match=r"did not answer, asked 3 times .*429"):
            list(criterion.judge(examples(4)))
    assert len(server.requests) in (3, 6)


@pytest.mark.parametrize(("status", "said"), [(401, "refuses the key"), (404, "is not there")])
def test_a_wrong_key_or_model_stops_at_once(judge, status, said):
    with serving(lambda body, number: Response(status=status)) as server:
        with pytest.raises(UserError, match=said):
            list(judge(server, concurrency=1).judge(examples(1)))
        assert len(server.requests) == 1


def test_time_outs_are_asked_again(judge):
    def respond(body, number):
        return Response(first=lambda: time.sleep(0.6 if number == 0 else 0))

    with serving(respond) as server:
        assert [s.passed for s in judge(server, timeout=0.2).judge(examples(1))] == [True]
        assert len(server.requests) == 2


def test_a_server_that_dies_half_way_and_comes_back(judge, tmp_path):
    def respond(body, number):
        return Response(status=503 if number >= 5 else 200)

    with serving(respond) as server:
        with pytest.raises(UserError, match="the same command continues"):
            list(judge(server, concurrency=1, retries=0).judge(examples(9)))
        server.requests.clear()
        # The same server, well again after the first five requests, which were for others.
        assert len(list(judge(server, concurrency=1).judge(examples(9)))) == 9
        assert [answer_in(body) for body in server.requests] == [f"answer {i}" for i in range(5, 9)]


def test_a_server_that_goes_away_stops_the_judge(judge):
    with serving(lambda body, number: Response()) as server:
        criterion = judge(server, retries=1)
        judging = criterion.judge(examples(1))
        server.stop()
        with pytest.raises(UserError, match=r"did not answer, asked 2 times \(Connection error"):
            list(judging)


_JUDGING = """
import sys
from jaxdpo.evaluation.judges.client import JudgeConfig
from jaxdpo.evaluation.judges.llm import judge_criterion
from jaxdpo.evaluation.judgement import Example

asked = [{"role": "user", "content": "When does it open?"}]
config = JudgeConfig(instructions="It is right.", model="m", base_url=sys.argv[1], concurrency=2)
said = judge_criterion(config).judge([Example(asked, f"answer {i}") for i in range(12)])
print(sum(bool(each.passed) for each in said))
"""


def test_killed_and_continued_nothing_is_paid_for_twice(tmp_path):
    environment = {**os.environ, "JAXDPO_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", _JUDGING]

    def respond(body, number):
        time.sleep(0.05)
        return Response()

    with serving(respond) as server:
        process = subprocess.Popen([*command, server.url], env=environment)
        cache = tmp_path / "judge_replies.jsonl"
        while not cache.exists() or cache.read_bytes().count(b"\n") < 4:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = cache.read_bytes().count(b"\n")
        # As if the kill had come in the middle of a line.
        with open(cache, "ab") as file:
            file.write(b'["0123')
        before = len(server.requests)
        done = subprocess.run(
            [*command, server.url], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "12\n"
        # At most the two that were under way when the process was killed are asked again.
        assert len(server.requests) - before == 12 - kept
        assert len(server.requests) <= 12 + 2
        assert before < 12
        done = subprocess.run([*command, server.url], env=environment, check=True, text=True)
        assert len(server.requests) - before == 12 - kept


def test_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="the environment has no OPENAI_API_KEY"):
        judge_criterion(JudgeConfig(instructions="x", model="m"))
    with pytest.raises(UserError, match="the environment has no MY_KEY"):
        judge_criterion(
            JudgeConfig(instructions="x", model="m", base_url="http://x", key_env="MY_KEY")
        )


def test_a_local_model_judges_through_the_same_interface(tmp_path):
    write_model(tmp_path / "model")
    config = JudgeConfig(
        instructions="x", model=str(tmp_path / "model"), local=True, max_tokens=6, concurrency=2
    )
    said = list(judge_criterion(config).judge(examples(3)))
    # Random weights say nothing that can be read: no judgement, and never FAIL.
    assert [each.judged for each in said] == [False] * 3
    assert all("not reply as asked" in s.explanation or "empty" in s.explanation for s in said)


def test_settings_that_a_local_judge_would_ignore_are_refused():
    with pytest.raises(ValueError, match="base_url is for servers, and local is set"):
        JudgeConfig(instructions="x", model="m", local=True, base_url="http://x")
    with pytest.raises(ValueError, match="needs max_tokens"):
        JudgeConfig(instructions="x", model="m", local=True, max_tokens=None)
