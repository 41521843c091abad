"""Machines that a run can be planned for without having one: `v5e:4x4`, `h100:8`.

The compilers for them run on any machine: libtpu's for TPU slices, the CUDA plugin's for GPUs.
"""

import math
import os
import re
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from jaxdpo.devices.machine import Machine
from jaxdpo.errors import UserError, nearest

# Share of the maker's FLOP/s that well-made training steps reach: what is published for dense
# models of 1B to 70B on H100, v5p and v6e lies between 0.32 and 0.65.
_SLOW, _FAST = 0.3, 0.6


@dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
      platform: "tpu" or "gpu".
      memory: GiB: of TPUs what their compiler lets a program use, of GPUs what they have.
      flops: Dense bf16 multiplications and additions, 1e12 a second, as the maker states them.
      link: Bytes that a chip can send to its neighbours, 1e9 a second, one way, all links.
      across: The same between hosts of GPUs.
      axes: Numbers in a topology's name.
    """

    platform: str
    memory: float
    flops: float
    link: float
    across: float
    axes: tuple[int, ...]


# Memory of TPUs as libtpu 0.0.42 enforces it. Speeds as stated at cloud.google.com/tpu/docs and in
# NVIDIA's data sheet of the H100 SXM; across hosts, one 400 Gbit/s adapter a GPU.
CHIPS = {
    "v5e": Chip("tpu", 15.75, 197, 200, 200, (2,)),
    "v5p": Chip("tpu", 95.74, 459, 600, 600, (3,)),
    "v6e": Chip("tpu", 31.25, 918, 448, 448, (2,)),
    "h100": Chip("gpu", 79.1, 989, 450, 50, (1, 2)),
}


@dataclass(frozen=True)
class Target:
    """A machine to plan for.

    Attributes:
      name: As it was asked for.
      chip: Its devices' kind.
      devices: Its devices: they can be compiled for and hold nothing.
    """

    name: str
    chip: Chip
    devices: list[Any]

    @property
    def machine(self) -> Machine:
        """Platform and memory, which a run's own decisions read."""
        share = 1.0
        if self.chip.platform == "gpu":
            # Of a GPU's memory JAX takes this share, by default.
            share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
        return Machine(self.chip.platform, share * self.chip.memory * 2**30)

    def seconds(self, flops: float, sent: float) -> tuple[float, float]:
        """Returns the least and the most time that a step takes.

        At best, sending hides behind computing, or computing behind sending; at worst neither does.

        Args:
          flops: That all devices together do.
          sent: Bytes that each device sends.
        """
        # TPU slices are one network whatever their size; GPUs have a fast one within a host alone.
        one_host = self.chip.platform == "tpu" or len(self.devices) <= 8
        sending = sent / ((self.chip.link if one_host else self.chip.across) * 1e9)
        stated = flops / (self.chip.flops * 1e12 * len(self.devices))
        return max(stated / _FAST, sending), stated / _SLOW + sending


def target(name: str) -> Target:
    """Finds the machine of a name.

    Args:
      name: A TPU slice by its shape in chips (`v5e:4x4`, `v5p:2x4x4`, `v6e:16x16`), or `h100:8`,
        `h100:2x8` (hosts × GPUs).

    Raises:
      UserError: For a name that is none, and where its compiler is not installed.
    """
    known = "there are v5e:AxB, v5p:AxBxC, v6e:AxB, h100:N and h100:HOSTSx8"
    kind, colon, text = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"topology={name}: unknown kind{nearest(kind, CHIPS)}; {known}")
    chip = CHIPS[kind]
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise UserError(f"topology={name}: the shape in chips is missing; {known}")
    shape = tuple(int(number) for number in text.split("x"))
    if len(shape) not in chip.axes:
        wanted = " or ".join(map(str, chip.axes))
        raise UserError(f"topology={name}: a shape of {kind} has {wanted} numbers; {known}")
    devices = _tpus(name, kind, shape) if chip.platform == "tpu" else _gpus(name, shape)
    return Target(name, chip, devices)


def keep_to_cpu() -> None:
    """Keeps this process off accelerators, so that it can plan while they are in use.

    Must come before jax is first used.
    """
    jax.config.update("jax_platforms", "cpu")
    # So that libtpu looks for no TPU, and two processes may load it at once.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _tpus(name: str, kind: str, shape: tuple[int, ...]) -> list[Any]:
    if find_spec("libtpu") is None:
        raise UserError(
            f"topology={name}: the compiler for TPUs is not installed; pip install "
            "'jaxdpo[tpu]' (it needs no TPU)"
        )
    # libtpu assumes hosts of four chips, and refuses a slice that is no multiple of them.
    options: dict[str, Any] = {}
    if math.prod(shape) == 1 or (kind == "v5e" and shape == (2, 4)):
        # One host that holds all of the slice.
        options["chips_per_host_bounds"] = [*shape, *(1,) * (3 - len(shape))]
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        said = str(error).split("\n")[0]
        raise UserError(
            f"topology={name}: libtpu knows no such slice ({said}); sides are powers of two, such "
            "as v5e:2x4, v5p:2x2x4, v6e:4x8"
        ) from error


def _gpus(name: str, shape: tuple[int, ...]) -> list[Any]:
    if not any(find_spec(f"jax_plugins.xla_cuda{version}") for version in (13, 12)):
        raise UserError(
            f"topology={name}: the compiler for GPUs is not installed; pip install "
            "'jaxdpo[plan-gpu]' (it needs no GPU)"
        )
    hosts, each = shape if len(shape) == 2 else (1, shape[0])
    if len(shape) == 1 and each > 8:
        raise UserError(f"topology={name}: a host has up to 8 GPUs; write h100:{each // 8}x8")
    # Without a GPU at hand, XLA must be told what one is.
    described = (resources.files("jaxdpo.planning") / "h100.txtpb").read_text()
    shape_text = f"1x{hosts}x{each}"
    return list(
        topologies.get_topology_desc(
            "", "cuda", target_config=described, topology=shape_text
        ).devices
    )
