"""Joins the processes of a run, and sees to it that they end together."""

import contextlib
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import NoReturn

import jax

from jaxdpo.devices import peers
from jaxdpo.devices.cluster import Cluster, find_cluster
from jaxdpo.devices.distributed_config import DistributedConfig
from jaxdpo.devices.peers import Peers
from jaxdpo.errors import UserError, explained
from jaxdpo.printable import show

# Packages whose versions decide what is computed.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
# Seconds between attempts to reach the coordinator.
_RETRY = 0.5
# Seconds that a process that has failed already waits to tell the others so.
_BRIEFLY = 30.0


@contextlib.contextmanager
def joined_processes(config: DistributedConfig, settings: Mapping[str, str]) -> Iterator[None]:
    """Joins the other processes of this run, if it was started with any, for a block.

    Nothing may have used JAX's devices before. An error in one process ends all of them, each
    with a message; so does a lost process, and a signal stops all.

    Args:
      config: Limits.
      settings: Name ↦ value of whatever must be the same in every process.

    Raises:
      UserError: If the processes don't find each other, or were started differently.
    """
    cluster = find_cluster(os.environ)
    if cluster is None:
        yield
        return
    _join(cluster, config, _missing(cluster, config.join))
    joined = start_peers(config)
    try:
        check_same("settings", {**_versions(), **settings})
        yield
    except SystemExit:
        joined.finish()
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        _fail(joined, error)
    joined.finish()


def start_peers(config: DistributedConfig) -> Peers:
    """Starts to keep in touch with the other processes, which JAX has joined already."""
    # JAX offers no public way to its key-value store; Orbax uses the same.
    state = jax._src.distributed.global_state  # pyright: ignore[reportAttributeAccessIssue]
    joined = Peers(state.client, state.process_id, state.num_processes, config)
    peers.keep(joined)
    joined.start()
    return joined


def check_same(what: str, values: Mapping[str, str]) -> None:
    """Refuses to go on with processes that differ in what must be the same.

    Args:
      what: What is compared.
      values: Name ↦ value in this process.

    Raises:
      UserError: In every process, naming those that differ and what in.
    """
    joined = peers.current()
    difference = joined.find_difference(what, values) if joined is not None else None
    if difference is not None:
        raise UserError(
            f"the processes of this run must be started alike, and are not: {difference}"
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def fail_before_joining(error: UserError) -> None:
    """Tells the other processes, if there are any, of an error found before joining them.

    Without a word they would wait for this process until their limit. It returns only in a run of
    one process, which reports the error itself.

    Args:
      error: The error.
    """
    cluster = find_cluster(os.environ)
    if cluster is None:
        return
    # Said at once: the others may not even be started.
    show(f"error: {error}", error=True)
    config = DistributedConfig(join=_BRIEFLY)
    try:
        _join(cluster, config, give_up=None)
    except UserError:
        os._exit(2)
    joined = start_peers(config)
    joined.fails(f"error: {error}")
    joined.depart()
    os._exit(2)


def _join(cluster: Cluster, config: DistributedConfig, give_up: str | None) -> None:
    """Joins, within a limit of ours: JAX's own ends in an abort with a C++ stack.

    Args:
      cluster: The processes.
      config: Limits.
      give_up: What is said at the limit, or None for nothing.

    Raises:
      UserError: If it fails before the limit.
    """
    until = time.monotonic() + config.join
    if cluster.address is not None and cluster.index != 0:
        _wait_for_coordinator(cluster, cluster.address, until, config.join)
    joined = threading.Event()

    def watch_limit() -> None:
        if not joined.wait(max(1.0, until - time.monotonic())):
            if give_up is not None:
                os.write(2, f"error: {give_up}\n".encode())
            os._exit(2)

    threading.Thread(target=watch_limit, daemon=True).start()
    try:
        jax.distributed.initialize(
            cluster.address,
            cluster.count if cluster.address is not None else None,
            cluster.index if cluster.address is not None else None,
            initialization_timeout=int(config.join) + 60,
            heartbeat_timeout_seconds=int(config.heartbeat),
            shutdown_timeout_seconds=int(config.leave),
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        text = str(error).splitlines()[0]
        raise UserError(
            f"{cluster.found_by}: process {cluster.index} of {cluster.count} could not join the "
            f"others: {text}"
        ) from error
    finally:
        joined.set()


def _wait_for_coordinator(cluster: Cluster, address: str, until: float, limit: float) -> None:
    """Waits until somebody listens where process 0 should.

    Raises:
      UserError: If nobody does in time.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except socket.gaierror as error:
            problem = f"{host} has no address ({error.strerror})"
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() > until:
            raise UserError(
                f"process {cluster.index} of {cluster.count}: process 0 did not answer at "
                f"{address} ({cluster.found_by}) within {limit:g} s: {problem}; start process 0, "
                "check the address and that no firewall is between, or raise distributed.join"
            )
        time.sleep(_RETRY)


def _missing(cluster: Cluster, limit: float) -> str:
    return (
        f"process {cluster.index} of {cluster.count}: the processes did not all join within "
        f"{limit:g} s ({cluster.found_by}); start {cluster.count} processes, each with a number "
        "of its own from 0, or raise distributed.join"
    )


def _fail(joined: Peers, error: BaseException) -> NoReturn:
    """Ends this process by an error, and the others with a word about it.

    Not by raising it: on the way out JAX would wait in a barrier for processes that never come.
    """
    if not isinstance(error, UserError):
        error = explained(error) or error
    expected = isinstance(error, UserError)
    if not expected and joined.explains():
        # The thread that found the lost peer says so, and ends the process.
        threading.Event().wait()
    text = f"error: {error}" if expected else f"{type(error).__name__}: {error}"
    if not joined.fails(" ".join(text.split())):
        threading.Event().wait()
    if expected:
        show(text, error=True)
    else:
        show("".join(traceback.format_exception(error)), error=True)
    sys.stdout.flush()
    sys.stderr.flush()
    joined.depart()
    os._exit(2 if expected else 1)
