"""Environments of launchers: several processes, one, or a line that says what is wrong."""

import json
import re
import subprocess
import sys
import time

import pytest

from jaxdpo.devices.cluster import Cluster, find_cluster, is_first
from jaxdpo.errors import UserError
from tests.devices.processes import PROJECT, free_port, launched, worker_command

JAX = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
# Of a job's script, and of a task that srun started.
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NODELIST": "n[1-4]"}
SRUN = SBATCH | {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        (JAX, Cluster("JAX_COORDINATOR_ADDRESS", 4, 3, "h:1")),
        (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (SRUN, Cluster("srun", 4, 2)),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "h:1"}, Cluster("srun", 4, 2, "h:1")),
        (SBATCH | {"SLURM_NTASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Cluster("mpirun", 2, 1)),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
            Cluster("TPU_WORKER_HOSTNAMES", 2, 1),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"},
            Cluster("TPU_WORKER_HOSTNAMES", 2, 0),
        ),
    ],
)
def test_processes_are_found(environment, cluster):
    assert find_cluster(environment) == cluster


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1"},
            "JAX_COORDINATOR_ADDRESS=h:1 is set, and JAX_NUM_PROCESSES and JAX_PROCESS_ID not",
        ),
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID=0 is set, and JAX_COORDINATOR_ADDRESS and"),
        (JAX | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES='four': must be a whole number"),
        (JAX | {"JAX_PROCESS_ID": "4"}, "numbered from 0 to 3"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "h"}, "must be the host and port of process 0"),
        (SBATCH, "SLURM_NTASKS=4, but this process is none of the tasks of a step; start it by"),
        (SBATCH | {"SLURM_NTASKS": "2(x2)"}, "SLURM_NTASKS=2(x2), but this process is none"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set, but mpirun says"),
    ],
)
def test_incomplete_environments_are_refused(environment, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        find_cluster(environment)
    assert "\n" not in str(refused.value)


def test_first_process_speaks_for_all():
    several = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert not is_first(several)
    assert is_first(several | {"JAX_PROCESS_ID": "0"})
    # A command that joins nobody, in a job script.
    assert is_first(SBATCH) and is_first({})


def test_coordinator_that_is_not_there():
    port = free_port()
    start = time.monotonic()
    command = worker_command(json.dumps({"phase": "steps", "limits": {"join": 3}}))
    ended = subprocess.run(
        command, env=launched(1, 2, port), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert time.monotonic() - start < 15
    assert ended.stderr.startswith(
        f"error: process 1 of 2: process 0 did not answer at 127.0.0.1:{port} "
    )
    assert "Connection refused; start process 0" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_command_refuses_with_one_line():
    """The command itself: the check comes before anything that takes time is imported."""
    environment = launched(0, 2, 1) | SBATCH
    for name in JAX:
        del environment[name]
    ended = subprocess.run(
        [sys.executable, "-m", "jaxdpo.train", "model=m", "data=d", "training.folder=r"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: SLURM_NTASKS=4, but this process is none of the tasks")
    assert len(ended.stderr.splitlines()) == 1
