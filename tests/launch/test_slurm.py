"""The job script for Slurm, on a real Slurm: stopped, requeued, and trained to the end."""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.launch import slurm as installed
from tests.launch.slurm import Slurm, running_slurm

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "configs" / "launch" / "slurm.sbatch"

if "JAXDPO_TEST_SLURM" not in os.environ:
    pytest.skip("takes minutes: set JAXDPO_TEST_SLURM=1", allow_module_level=True)
if (absent := installed.missing()) is not None:
    pytest.skip(absent, allow_module_level=True)


@pytest.fixture(scope="module")
def slurm():
    # Not pytest's folder, whose path is too long for munged's socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with running_slurm(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition, log: Path, limit: float = 900) -> None:
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)


@pytest.mark.parametrize("tasks", [1, 2])
def test_job_is_stopped_requeued_and_finished(slurm: Slurm, tmp_path, tasks):
    run, log = tmp_path / "run", tmp_path / "job.log"
    options = [f"--nodes={tasks}", "--ntasks-per-node=1", f"--output={log}", "--parsable"]
    words = [
        *("configs/quickstart.yaml", f"training.folder={run}", "training.completions=0"),
        *("training.max_steps=12", "checkpoint.every=5", "training.evaluate_every=12"),
        f"mesh.data={tasks}",
    ]
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{slurm_port()}"} if tasks > 1 else {}
    job = slurm.call(
        "sbatch",
        *options,
        f"--chdir={PROJECT}",
        str(SCRIPT),
        *words,
        PYTHON=sys.executable,
        PYTHONPATH=str(PROJECT),
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=1",
        **address,
    ).strip()
    records = run / "metrics.jsonl"
    wait_until(lambda: records.exists() and '{"step": 2, ' in records.read_text(), log)
    slurm.call("scancel", "--signal=TERM", job)
    wait_until(lambda: "saved after step" in log.read_text(), log, 60)
    # Slurm keeps a requeued job back for two minutes; this skips them.
    wait_until(lambda: slurm.state(job) == "PENDING", log, 60)
    assert not (run / "summary.json").exists()
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), log)
    assert slurm.state(job) == "COMPLETED", log.read_text()
    said = log.read_text()
    assert "continuing after step" in said
    assert said.count("SIGTERM") >= 1 and "Traceback" not in said and "Check failure" not in said
    assert (run / "summary.json").exists() and (run / "model" / "model.safetensors").exists()


def slurm_port() -> int:
    from tests.devices.processes import free_port

    return free_port()


def test_command_in_a_job_but_not_in_a_task(slurm: Slurm, tmp_path):
    """Slurm's own variables, as its batch script sees them."""
    log = tmp_path / "job.log"
    script = tmp_path / "job.sh"
    words = "model=m data=d training.folder=r"
    script.write_text(f"#!/bin/bash\n{sys.executable} -m jaxdpo.train {words}\n")
    job = slurm.call(
        *("sbatch", "--nodes=2", "--ntasks-per-node=1", f"--output={log}", "--parsable"),
        str(script),
        PYTHONPATH=str(PROJECT),
    ).strip()
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), log, 60)
    assert slurm.state(job) == "FAILED"
    assert log.read_text().startswith(
        "error: SLURM_NTASKS=2, but this process is none of the tasks"
    )
    assert os.linesep not in log.read_text().strip()
