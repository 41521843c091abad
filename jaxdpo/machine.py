"""What there is to know of the machine that a run is for, before it runs."""

import os
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
