"""A run of two processes ends early, or goes on, by one decision of both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdpo.runs.load import load_source

# Runs of a minute each in two processes: JAXDPO_TEST_PROCESSES=all python -m pytest tests/runs
EVERYTHING = os.environ.get("JAXDPO_TEST_PROCESSES") == "all"
pytestmark = pytest.mark.skipif(
    not EVERYTHING, reason="set JAXDPO_TEST_PROCESSES=all: takes four minutes"
)
CRITERIA = "training.watch.criteria=[{name: word_limit, limit: from_prompt}]"


def train_in_two(folder: Path, *overrides: str) -> str:
    """Runs the quickstart in two processes of one device each; returns what the first one said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "jaxdpo.train", "configs/quickstart.yaml"),
        f"training.folder={folder / 'run'}",
        f"data.cache_dir={folder / 'cache'}",
        "training.completions=0",
        "training.evaluate_every=4",
        "training.watch.prompts=4",
        CRITERIA,
        *overrides,
    ]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ
            | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    # A process that went on alone would wait for the other one in its next step, for ever.
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs[0].replace("\n", " ")


def evaluations(run: Path) -> dict[int, dict]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record for record in records if record["split"] == "TEST"}


def test_a_run_made_to_collapse_ends_in_both_and_exports_a_step_as_good_as_the_base(tmp_path):
    said = train_in_two(
        tmp_path,
        "optimizer.learning_rate=5e-3",  # 50 times the configuration's
        "training.max_steps=16",
        "checkpoint.best=word_limit",
        "training.stop.broken=0.5",
    )
    exported = json.loads((tmp_path / "run" / "summary.json").read_text())["exported"]
    assert "of the answers to TEST prompts are broken" in exported["stopped"]
    assert f"exporting step {exported['step']}, the best on TEST" in said
    tested = evaluations(tmp_path / "run")
    assert max(tested) < 16
    rates = {step: record["answers/pass_rate/word_limit"] for step, record in tested.items()}
    assert rates[exported["step"]] >= rates[0]
    assert exported["read_back"]["largest_difference"] < 1e-4


@pytest.mark.parametrize("kind", ["full", "nf4"])
def test_a_healthy_run_never_ends_early(tmp_path, kind):
    """And what two processes merge, round and read back is what was trained."""
    lora = [] if kind == "full" else ["lora.rank=4", f"lora.base={kind}"]
    settings = ["training.stop={broken: 0.3, worse: 3}", "checkpoint.best=loss", *lora]
    train_in_two(tmp_path, "training.max_steps=12", "mesh.fsdp=2", "mesh.data=1", *settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exported"]["stopped"] is None
    assert sorted(evaluations(tmp_path / "run")) == [0, 4, 8, 12]
    assert summary["exported"]["read_back"]["largest_difference"] < 1e-3
    assert load_source(str(tmp_path / "run" / "model")).file_dtype == "bfloat16"
    # The same two processes continue it.
    said = train_in_two(tmp_path, "training.max_steps=14", "mesh.fsdp=2", "mesh.data=1", *settings)
    assert "a run of 12 steps goes on to 14" in said
    assert max(evaluations(tmp_path / "run")) == 14
