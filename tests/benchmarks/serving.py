"""Completion tokens a second of the server against the offline engine.

`python -m tests.benchmarks.serving [clients=64] [rows=64] [rounds=3] [model=@quickstart/model]`

The same prompts, settings, seeds and number of rows: offline in one call of `generate_each`, then
by as many clients as are asked for, each with a connection of its own, over loopback. The clients
are a process of their own, as they are in practice; with few cores they take a share of them. So
the second column counts only the processor's time of the process that holds the model, which other
work on the machine changes little.
"""

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxdpo.cli.console import Reporter
from jaxdpo.runs.load import load_source
from jaxdpo.sampling import Request, SamplingConfig, complete
from jaxdpo.serving import ServeConfig, load_models
from jaxdpo.serving.app import make_app
from jaxdpo.serving.run import keep_loaded
from jaxdpo.serving.server import Server, listen
from jaxdpo.storage.files import shipped

REQUESTS, LIMIT = 256, 64


def prompts(count: int) -> list[list[dict[str, str]]]:
    with open(shipped("@quickstart/pairs.jsonl"), encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    return [record["messages"][:1] for record in records]


def offline(policy, asked, rows: int) -> tuple[int, float]:
    """Tokens and seconds of all answers, by the engine alone."""
    sampling = SamplingConfig(max_new_tokens=LIMIT, temperature=1.0, batch_size=rows, seed=1)
    started = time.perf_counter()
    ids = [policy.chat.encode(messages, add_generation_prompt=True) for messages in asked]
    ends = set(policy.chat.end_ids)
    done = complete(policy, [Request(each) for each in ids], sampling)
    tokens = sum(len(set_apart(each.sampled.ids, ends)) for each in done if each.sampled)
    return tokens, time.perf_counter() - started


def set_apart(ids, ends) -> list[int]:
    return [token for token in ids if token not in ends]


def ask_all(url: str, model: str, clients: int, stream: bool) -> dict[str, Any]:
    """Sends all requests from so many connections at a time; runs in the clients' process."""
    import http.client

    asked, lock = prompts(REQUESTS), threading.Lock()
    host = url.removeprefix("http://")
    local, tokens, first, failed = threading.local(), [0], [], [0]

    def ask(messages) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(host, timeout=300)
        body = {"model": model, "messages": messages, "max_tokens": LIMIT, "seed": 1}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        started = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        local.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = local.connection.getresponse()
        usage, waited = None, None
        if stream:
            for line in reply:
                if b'"content":' in line and b'"role"' not in line and waited is None:
                    waited = time.perf_counter() - started
                if b'"usage":' in line:
                    usage = json.loads(line[6:])["usage"]
        else:
            usage = json.loads(reply.read()).get("usage")
        with lock:
            failed[0] += reply.status != 200 or usage is None
            tokens[0] += usage["completion_tokens"] if usage else 0
            first.extend([] if waited is None else [waited])

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, asked))
    seconds = time.perf_counter() - started
    return {"tokens": tokens[0], "seconds": seconds, "failed": failed[0], "first": sorted(first)}


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    if "url" in given:
        clients, stream = int(given["clients"]), given["stream"] == "True"
        print(json.dumps(ask_all(given["url"], given["model"], clients, stream)))
        return
    model = given.get("model", "@quickstart/model")
    clients, rows, rounds = (
        int(given.get(name, default))
        for name, default in (("clients", 64), ("rows", 64), ("rounds", 3))
    )
    policy, asked = load_source(shipped(model)), prompts(REQUESTS)
    config = ServeConfig(model=model, port=0, batch_size=rows, log="none")
    listener = listen(config)
    server = Server(make_app(load_models(config), config), config, Reporter(quiet=True))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def served(stream: bool) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.benchmarks.serving", f"url={url}"]
        command += [f"model={model}", f"clients={clients}", f"stream={stream}"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    offline(policy, asked, rows)  # compiles
    served(True)
    keep_loaded()
    print(f"{REQUESTS} requests, {rows} rows, {clients} clients; best of {rounds} rounds in turns")
    wall: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    first: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        count, seconds = offline(policy, asked, rows)
        spent = {"offline": (seconds, time.process_time() - began)}
        for name, stream in (("served", False), ("streamed", True)):
            began = time.process_time()
            found = served(stream)
            assert found["failed"] == 0 and found["tokens"] == count, (found, count)
            spent[name] = (found["seconds"], time.process_time() - began)
            first = found["first"] or first
        for name, (seconds, processor) in spent.items():
            wall[name] = max(wall[name], count / seconds)
            cpu[name] = max(cpu[name], count / processor)
    print("            tokens/s  of offline   tokens/processor-s  of offline")
    for name in wall:
        shares = wall[name] / wall["offline"], cpu[name] / cpu["offline"]
        print(f"{name:10} {wall[name]:9.0f} {shares[0]:11.2f} {cpu[name]:20.0f} {shares[1]:11.2f}")
    middle, late = first[len(first) // 2], first[int(len(first) * 0.95)]
    print(f"first token after {middle * 1000:.0f} ms (median), {late * 1000:.0f} ms (95%)")
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
