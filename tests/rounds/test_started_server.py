"""Rounds whose models answer through a server that is started for each and ends with it."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from jaxdpo.cli.settings import load_settings
from jaxdpo.data.generations import read_generations
from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.generation import started_server
from jaxdpo.iterate import main as iterate_command
from jaxdpo.rounds.iterate import RoundsConfig
from jaxdpo.runs.load import load_source
from jaxdpo.sampling import SamplingConfig, answer
from tests.folders import write_model

FAKE = f"{sys.executable} {Path(__file__).parent / 'fake_server.py'} {{model}} {{port}}"
SIGNALS: list[signal.Signals] = []


def same(messages, completion, metadata):
    """Passes every answer, so that no pairs come of them and nothing is trained."""
    if SIGNALS:
        os.kill(os.getpid(), SIGNALS.pop())
        time.sleep(5)
    return Judgement(passed=True, score=1.0, explanation="")


def arguments(folder, command, *more):
    asked = folder.parent / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"the red cat {i}"}]} for i in range(4)]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        f"data={asked}", f"folder={folder}", "samples=2", "rounds=1",
        "server.command=" + json.dumps(command), "sampling.max_new_tokens=8", *more,
    ]  # fmt: skip


def fake(folder, way=""):
    model = folder.parent / "my model"
    return [
        *arguments(folder, f"{FAKE} {way}", f"criteria={{function: '{__name__}:same'}}"),
        f"model={json.dumps(str(model))}",
    ]


def processes(folder):
    """Ids of the servers that were started, and of their workers."""
    found = re.findall(r"processes (\[.*\])", (folder / "round_1" / "server.log").read_text())
    return [number for each in found for number in json.loads(each)]


def runs(number):
    """Tells whether a process runs; one that was killed gets a moment to end."""
    for _ in range(200):
        # Z has ended, and was not yet asked for its status by whoever took it over.
        try:
            if "\nState:\tZ" in Path(f"/proc/{number}/status").read_text():
                return False
        except OSError:
            return False
        time.sleep(0.01)
    return True


def test_a_server_answers_for_the_rounds_model_and_is_gone_afterwards(tmp_path, capsys):
    folder = tmp_path / "rounds"
    iterate_command(fake(folder))
    model = f"{tmp_path}/my model"
    drawn = read_generations(folder / "round_1" / "generations.jsonl")
    assert [each.completion for each in drawn] == [f"m/1 is {model}"] * 8
    assert {each.model for each in drawn} == {model}
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"{model} answers at http://127\.0\.0\.1:\d+/v1#m/1", shown)
    started = processes(folder)
    assert len(started) == 2 and not any(map(runs, started))
    # All answers are there: no server is started for none, at whatever port it would be.
    iterate_command([*fake(folder), "server.port=1"])
    assert processes(folder) == started


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("way", ["", "stubborn"])
def test_no_server_outlives_a_signal(tmp_path, monkeypatch, number, raised, way):
    monkeypatch.setattr(started_server, "_STOP_SECONDS", 5.0 if not way else 0.3)
    monkeypatch.setattr(f"{__name__}.SIGNALS", [number])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised) as ended:
        iterate_command(fake(tmp_path / "rounds", way))
    assert raised is KeyboardInterrupt or ended.value.code == 143
    started = processes(tmp_path / "rounds")
    assert len(started) == 2 and not any(map(runs, started))
    assert signal.getsignal(signal.SIGTERM) == before
    # What was answered is kept, and the same command goes on.
    iterate_command(fake(tmp_path / "rounds", way))
    assert processes(tmp_path / "rounds") == started


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("broken", r"ended with status 1 before it answered; .*server\.log ends with\n  no such"),
        (
            "silent",
            r"did not answer at http://127\.0\.0\.1:\d+/health within 1 s; raise server\.st",
        ),
        ("nameless", r"lists no model at http://127\.0\.0\.1:\d+/v1/models"),
    ],
)
def test_a_server_that_does_not_come_to_answer(tmp_path, way, message):
    folder = tmp_path / "rounds"
    seconds = 1 if way == "silent" else 60
    with pytest.raises(UserError, match=message):
        iterate_command([*fake(folder, way), f"server.start_timeout={seconds}"])
    if way == "nameless":
        assert not any(map(runs, processes(folder)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("server.command='vllm serve {model}'", r"lacks \{port\}"),
        ("server.command='vllm serve --port {port}'", r"lacks \{model\}"),
        ('server.command="serve \'{model} {port}"', "is no command line"),
        ("server.comand=x", "did you mean 'command'"),
    ],
)
def test_commands_that_cannot_be_meant(given, message):
    words = ["model=m", "data.path=p", "criteria=json", "folder=f", given]
    with pytest.raises(UserError, match=message):
        load_settings(RoundsConfig, None, words)


def test_a_program_that_is_not_there(tmp_path):
    words = arguments(tmp_path / "rounds", "no-such-server {model} {port}", "model=m",
                      "criteria={name: word_limit, limit: 9}")  # fmt: skip
    with pytest.raises(UserError, match="no-such-server cannot be started: No such file"):
        iterate_command(words)


def longer(messages, completion, metadata):
    """Prefers the longer answer."""
    return Judgement(passed=len(completion) > 10, score=float(len(completion)), explanation="")


@pytest.mark.skipif(
    not os.environ.get("JAXDPO_SERVING"), reason="two starts; set JAXDPO_SERVING=1 to run"
)
def test_rounds_by_jaxdpo_serve(tmp_path):
    """Each round's model answers through `jaxdpo serve`, as it answers where it lies."""
    write_model(tmp_path / "model")
    folder = tmp_path / "rounds"
    serve = started_server.StartedServerConfig().command + " batch_size=4"
    command = arguments(
        folder, serve, f"model={tmp_path}/model",
        # So cold that the likeliest token is drawn, and yet not 0, which rounds refuse.
        f"criteria={{function: '{__name__}:longer'}}", "sampling.temperature=1e-5",
        "feedback=" + str(people(tmp_path)),
        "train={data: {max_length: 128, cache_dir: " + str(tmp_path / "cache") + "}, batch: "
        "{size: 4}, optimizer: {learning_rate: 0.01}, training: {completions: 0}}",
    )  # fmt: skip
    iterate_command(command)
    for part, model in (("round_1", tmp_path / "model"), ("final", folder / "round_1/run/model")):
        drawn = read_generations(folder / part / "generations.jsonl")
        asked = [each.messages for each in drawn]
        greedy = answer(load_source(str(model)), asked, SamplingConfig(max_new_tokens=8))
        assert [each.completion for each in drawn] == greedy


def people(folder):
    """A log of what people said, so that there is something to train on."""
    lines = [
        {"conversation": "c", "event": "prompt",
         "messages": [{"role": "user", "content": "the red cat"}], "split": "TRAIN"},
        {"conversation": "c", "event": "generated", "output": "a", "content": "sees"},
        {"conversation": "c", "event": "generated", "output": "b", "content": "the cat"},
        {"conversation": "c", "event": "selected", "output": "b"},
    ]  # fmt: skip
    log = folder / "people.jsonl"
    time_of = "2026-05-04T09:00:00Z"
    log.write_text("".join(json.dumps({**line, "time": time_of}) + "\n" for line in lines))
    return log
