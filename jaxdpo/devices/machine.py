"""What there is to know of the machine that a run is for, before it runs."""

import os
import resource
import sys
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Machine:
    """A machine of equal devices.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      memory: Bytes of one device that a program may use.
    """

    platform: str
    memory: float


def local_machine() -> Machine:
    """The machine at hand; of a CPU its memory is shared out to the devices that it stands for."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return Machine(jax.default_backend(), float(stats["bytes_limit"]))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(jax.default_backend(), physical / jax.local_device_count())


def peak_memory() -> float:
    """Most memory used so far, in bytes: of the fullest local device, or of this process on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(stat["peak_bytes_in_use"] for stat in stats if stat)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)
