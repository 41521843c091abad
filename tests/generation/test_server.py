"""Answers from an OpenAI-compatible server, a real one that each test starts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.errors import UserError
from jaxdpo.generation.server import ServerConfig, ask_server
from jaxdpo.sampling.config import SamplingConfig

PROMPTS = [Prompt(f"{n}", ({"role": "user", "content": f"question {n}"},)) for n in range(4)]


class Server(ThreadingHTTPServer):
    """A server that keeps what was asked, and answers with the statuses it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: list[tuple[str, str, Any]] = []
        self.statuses: list[int] = []
        self.reason = "stop"


class Handler(BaseHTTPRequestHandler):
    """Answers with what was asked; each request's status is the next of `server.statuses`."""

    def do_POST(self):
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, self.headers["Authorization"], body))
            status = server.statuses.pop(0) if server.statuses else 200
        said = {"role": "assistant", "content": f"echo {body['messages'][-1]['content']}"}
        choice = {"index": 0, "message": said, "finish_reason": server.reason}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        text = json.dumps(reply | {"choices": [choice]} if status == 200 else {"error": "no"})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, prompts=PROMPTS, retries=3, **sampling):
    model = f"http://127.0.0.1:{server.server_port}/v1#tiny"
    wanted = [(prompt, 0) for prompt in prompts]
    config = ServerConfig(timeout=20, retries=retries)
    return list(ask_server(model, wanted, SamplingConfig(batch_size=2, **sampling), config))


def test_every_prompt_is_answered(server):
    answers = ask(server, temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=9, stop=("END",))
    found = {answer.number: (answer.text, answer.finished) for answer in answers}
    assert found == {n: (f"echo question {n}", True) for n in range(4)}
    path, authorization, body = server.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert body.pop("messages")[0]["role"] == "user"
    seed = body.pop("seed")
    assert body == {
        "model": "tiny",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "top_k": 7,
    }
    assert {asked["seed"] for _, _, asked in server.asked[1:]} == {seed}


def test_an_answer_that_was_cut_off_is_not_finished(server):
    server.reason = "length"
    assert not ask(server, PROMPTS[:1])[0].finished


def test_busy_and_failing_servers_are_asked_again(server):
    server.statuses = [429, 500, 503]
    assert len(ask(server)) == 4
    assert len(server.asked) == 7


def test_a_server_that_does_not_recover_is_named(server):
    server.statuses = [200, 200, *[500] * 20]
    model = f"http://127.0.0.1:{server.server_port}/v1#tiny"
    done = []
    with pytest.raises(UserError, match=r"status 500.*the same command continues"):
        for answer in ask_server(
            model,
            [(prompt, 0) for prompt in PROMPTS],
            SamplingConfig(batch_size=1),
            ServerConfig(retries=1),
        ):
            done.append(answer.number)
    assert done == [0, 1]


def test_arguments_of_calls_are_sent_as_text(server):
    call = {"id": "a", "function": {"name": "find", "arguments": {"x": 1}}}
    messages = (
        {"role": "user", "content": "Find it"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "found", "tool_call_id": "a"},
    )
    assert ask(server, [Prompt("t", messages)])[0].text == "echo found"
    sent = server.asked[0][2]["messages"][1]["tool_calls"][0]
    assert sent["type"] == "function" and json.loads(sent["function"]["arguments"]) == {"x": 1}


def test_an_address_without_a_model():
    with pytest.raises(UserError, match=r"no model of it; write http://x/v1#name"):
        list(ask_server("http://x/v1", [(PROMPTS[0], 0)], SamplingConfig(), ServerConfig()))
