"""The machine that a run is for: its platform, its memory and how much of it is in use."""

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
    """Describes the machine at hand; the devices that a CPU stands for share its memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return Machine(jax.default_backend(), float(stats["bytes_limit"]))
    # JAX knows no limit of a CPU: all of the machine's memory, which other programs use too.
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(jax.default_backend(), physical / jax.local_device_count())


def free_memory() -> float:
    """Returns the bytes that a program may still take of the fullest local device."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stat is not None and "bytes_limit" in stat for stat in stats):
        return min(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats if stat)
    if not sys.platform.startswith("linux"):
        return local_machine().memory
    # The kernel's own estimate, which counts what it would drop of its caches.
    with open("/proc/meminfo", encoding="ascii") as file:
        sizes = dict(line.split(":") for line in file)
    kilobytes = int(sizes["MemAvailable"].split()[0])
    return kilobytes * 1024 / jax.local_device_count()


def peak_memory() -> float:
    """Returns the most bytes used yet: of the fullest local device, or of this process on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(stat["peak_bytes_in_use"] for stat in stats if stat)
    # Linux counts kilobytes here, macOS bytes.
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)
