"""Finds the processes that a run was started with, in the environment that launchers set."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxdpo.errors import UserError

_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class Cluster(NamedTuple):
    """The processes of a run.

    Attributes:
      found_by: The variables or launcher that say so.
      count: How many there are.
      index: Number of this one.
      address: Host and port of process 0; None: JAX finds it by itself.
    """

    found_by: str
    count: int
    index: int
    address: str | None = None


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Finds the processes that this one was started with; None if it is alone.

    A run has several under Slurm's `srun`, Open MPI and on TPU pods, where JAX finds the rest by
    itself, and wherever JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.

    Args:
      environment: Environment variables.

    Raises:
      UserError: For variables that contradict each other or are incomplete.
    """
    launched = next(
        (found for find in _LAUNCHERS if (found := find(environment)) is not None), None
    )
    found = _by_variables(environment, launched) or launched
    return found if found is not None and found.count > 1 else None


def is_first(environment: Mapping[str, str]) -> bool:
    """Tells whether this process is the one of a run that speaks for all, or is alone.

    Args:
      environment: Environment variables.
    """
    try:
        cluster = find_cluster(environment)
    except UserError:
        # A command that joins no others takes no notice of such variables either.
        return True
    return cluster is None or cluster.index == 0


def _by_variables(environment: Mapping[str, str], launched: Cluster | None) -> Cluster | None:
    given = [name for name in _JAX if name in environment]
    if not given:
        return None
    missing = [name for name in _JAX if name not in environment]
    if given == [_JAX[0]] and launched is not None:
        # A launcher knows the processes, and the user the address, as where a port is blocked.
        return launched._replace(address=_address(environment))
    if missing:
        raise UserError(
            f"{given[0]}={environment[given[0]]} is set, and {' and '.join(missing)} not; set all "
            f"of {', '.join(_JAX)} for a run of several processes, or none for a run of one"
        )
    count, index = (_number(environment, name, _JAX[0]) for name in _JAX[1:])
    if not 0 <= index < count:
        raise UserError(
            f"{_JAX[2]}={index}, {_JAX[1]}={count}: processes are numbered from 0 to {count - 1}"
        )
    return Cluster(_JAX[0], count, index, _address(environment))


def _address(environment: Mapping[str, str]) -> str:
    address = environment[_JAX[0]]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{_JAX[0]}={address}: must be the host and port of process 0, HOST:PORT")
    return address


def _by_slurm(environment: Mapping[str, str]) -> Cluster | None:
    if "SLURM_JOB_ID" not in environment and "SLURM_NTASKS" not in environment:
        return None
    # Slurm sets the number of a job's tasks in its script, too, and in any shell that it opens; the
    # list of a step's nodes only in tasks.
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        count = _number(environment, "SLURM_NTASKS", "srun")
        return Cluster("srun", count, _number(environment, "SLURM_PROCID", "srun"))
    text = environment.get("SLURM_NTASKS", "1")
    # With the address given, the other variables say the rest, or are asked for.
    if text == "1" or "JAX_COORDINATOR_ADDRESS" in environment:
        return None
    raise UserError(
        f"SLURM_NTASKS={text}, but this process is none of the tasks of a step; start it by "
        "srun python -m jaxdpo.train …, or unset SLURM_NTASKS to train in this process alone"
    )


def _by_open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count = _number(environment, "OMPI_COMM_WORLD_SIZE", "mpirun")
    return Cluster("mpirun", count, _number(environment, "OMPI_COMM_WORLD_RANK", "mpirun"))


def _by_tpu(environment: Mapping[str, str]) -> Cluster | None:
    hosts = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    found_by = "TPU_WORKER_HOSTNAMES"
    slices = 1
    if "MEGASCALE_NUM_SLICES" in environment:
        slices = _number(environment, "MEGASCALE_NUM_SLICES", found_by)
    if len(hosts) * slices < 2:
        return None
    return Cluster(found_by, len(hosts) * slices, _number(environment, "TPU_WORKER_ID", found_by))


def _number(environment: Mapping[str, str], name: str, beside: str) -> int:
    """Reads a whole number.

    Raises:
      UserError: If there is none.
    """
    text = environment.get(name)
    if text is None:
        raise UserError(f"{name} is not set, but {beside} says that there are several processes")
    if not text.isdecimal():
        raise UserError(f"{name}={text!r}: must be a whole number")
    return int(text)


_LAUNCHERS = (_by_slurm, _by_open_mpi, _by_tpu)
