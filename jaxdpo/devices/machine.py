"""The machine that a run is for: its platform, its memory and how much of it is in use."""

import os
import re
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
      capability: Compute capability of NVIDIA's GPUs (8.0 for an A100, 9.0 for an H100); None of
        other devices, and where it is not known.
    """

    platform: str
    memory: float
    capability: float | None = None


def local_machine() -> Machine:
    """Describes the machine at hand; the devices that a CPU stands for share its memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        # NVIDIA's GPUs say it as "9.0"; AMD's, by a name such as "gfx942".
        said = str(getattr(device, "compute_capability", ""))
        capability = float(said) if re.fullmatch(r"\d+\.\d+", said) else None
        return Machine(jax.default_backend(), float(stats["bytes_limit"]), capability)
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
