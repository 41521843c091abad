"""Launch scripts: the variables and words that each process is started with."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from jaxdpo.devices.cluster import Cluster, find_cluster

LAUNCH = Path(__file__).parents[2] / "configs" / "launch"
WORDS = ["configs/lora.yaml", "training.folder=/shared/my runs/1", "loss.type=[sigmoid]"]
# Stands where Python is called, and prints what it was called with.
PYTHON = """#!{python}
import json, os, signal, sys, time
print(json.dumps({{"words": sys.argv[1:], "environment": dict(os.environ)}}), flush=True)
if "WAITS" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    time.sleep(60)
"""
# Stands where ssh is called: the machine is this one.
SSH = """#!/bin/bash
shift
exec bash -c "$1"
"""


@pytest.fixture
def stubs(tmp_path):
    for name, text in (("python", PYTHON.format(python=sys.executable)), ("ssh", SSH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def launch(script: str, stubs: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(LAUNCH / script), *WORDS],
        env=os.environ | {"PYTHON": str(stubs / "python"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_tpu_vm_script(stubs):
    """Stands for the metadata server of a v5e slice of four VMs."""
    said = {
        "/agent-worker-number": "2",
        "/worker-network-endpoints": ",".join(f"unknown:unknown:10.0.0.{i}" for i in range(4)),
    }

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Metadata-Flavor"] == "Google" and self.path in said
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(said.get(self.path, "").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        started = launch("tpu_vm.sh", stubs, METADATA=f"http://127.0.0.1:{server.server_port}")
        found = json.loads(started.communicate(timeout=30)[0])
    finally:
        server.shutdown()
    assert found["words"] == ["-m", "jaxdpo.train", *WORDS]
    cluster = find_cluster(_launched(found["environment"]))
    assert cluster == Cluster("JAX_COORDINATOR_ADDRESS", 4, 2, "10.0.0.0:8476")


def _launched(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("JAX_")}


def test_ssh_script_starts_a_process_for_each_host(stubs, tmp_path):
    started = launch("ssh.sh", stubs, HOSTS="one two", SSH=str(stubs / "ssh"), FOLDER=str(tmp_path))
    lines = started.communicate(timeout=30)[0].splitlines()
    assert started.returncode == 0
    assert sorted(line.partition(": ")[0] for line in lines) == ["one", "two"]
    found = [json.loads(line.partition(": ")[2]) for line in sorted(lines)]
    for number, each in enumerate(found):
        assert each["words"] == ["-m", "jaxdpo.train", *WORDS]
        assert each["environment"]["PWD"] == str(tmp_path)
        cluster = find_cluster(_launched(each["environment"]))
        assert cluster == Cluster("JAX_COORDINATOR_ADDRESS", 2, number, "one:8476")


def test_ssh_script_passes_a_signal_on(stubs):
    started = launch(
        "ssh.sh", stubs, HOSTS="one two", SSH=str(stubs / "ssh"), FOLDER=str(stubs), WAITS="1"
    )
    assert started.stdout is not None
    for _ in range(2):
        started.stdout.readline()
    time.sleep(0.2)
    started.send_signal(signal.SIGTERM)
    assert started.wait(15) == 143


def test_gke_and_skypilot_files():
    """They are YAML, and start the command with words that it reads."""
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    (group,) = job["spec"]["replicatedJobs"]
    pod = group["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:3] == ["python", "-m", "jaxdpo.train"]
    assert pod["terminationGracePeriodSeconds"] > 30
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    environment = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    shown = subprocess.run(
        ["bash", "-euc", task["run"].replace("exec python -m jaxdpo.train", "env; true")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("JAX_"))
    assert find_cluster(found) == Cluster("JAX_COORDINATOR_ADDRESS", 2, 1, "10.0.0.1:8476")
