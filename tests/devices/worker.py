"""One process of several, which computes together with the others in steps, as a run does.

It is started as `python -m tests.devices.worker '{"phase": …}'` with the variables that a launcher
sets, and joins, stops and ends by the very functions that `jaxdpo.train` calls.
"""

import ctypes
import json
import os
import sys
import time

from jaxdpo.devices.cluster import find_cluster
from jaxdpo.devices.supervisor import is_supervised, supervise
from jaxdpo.errors import UserError


def main(arguments: list[str]) -> None:
    options = json.loads(arguments[0])
    if options["phase"] == "program":
        program()
        return
    cluster = find_cluster(os.environ)
    if cluster is not None and not is_supervised():
        sys.exit(supervise(cluster))

    from jaxdpo.devices.distributed_config import DistributedConfig
    from jaxdpo.devices.joining import joined_processes

    limits = DistributedConfig(**options.get("limits", {}))
    with joined_processes(limits, options.get("settings", {})):
        print("joined", os.getpid(), flush=True)
        work(options)
    print("done", flush=True)


def program() -> None:
    """Trains twice, as a program does that has joined its processes by itself."""
    import jax

    environment = os.environ
    jax.distributed.initialize(
        environment["JAX_COORDINATOR_ADDRESS"],
        int(environment["JAX_NUM_PROCESSES"]),
        int(environment["JAX_PROCESS_ID"]),
    )
    for _ in range(2):
        work({"phase": "steps", "steps": 4})
        print("trained", flush=True)
    work({"phase": "steps"})


def work(options: dict) -> None:
    """Takes steps that every process must take, or stands in a call that runs no Python code."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from jaxdpo.training.signals import stop_on_signal

    me, phase = jax.process_index(), options["phase"]
    if phase == "error" and me == options["process"]:
        raise UserError("data.path missing.jsonl: no such file")
    if phase == "crash" and me == options["process"]:
        raise ZeroDivisionError("a defect")
    if phase in ("compile", "error", "crash"):
        # As a compiler does, this neither returns to Python nor holds its lock.
        ctypes.CDLL(None).sleep(60)
        return
    with stop_on_signal() as stop:
        for step in range(1, options.get("steps", 10_000)):
            multihost_utils.process_allgather(np.array(step))
            # One is a little slower than the others, as machines are.
            time.sleep(0.02 * (1 + me))
            print("step", step, flush=True)
            if stop.after_step():
                print(f"{stop.cause}: saved after step {step}", flush=True)
                sys.exit(stop.status)
        if stop.after_last_step():
            sys.exit(stop.status)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
