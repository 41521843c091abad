"""Step time by attention and remat on the machine at hand: `python -m tests.benchmarks.kernels`.

    python -m tests.benchmarks.kernels config=configs/llama-1b.yaml flops=989e12 section.field=…

Real steps of random weights and tokens at chat lengths. MFU is of useful FLOPs: no padding, no
remat. `flops` is what the maker states of one device, dense, in the dtype that is computed in.
"""

import sys

import jax
import numpy as np

from jaxdpo.cli.console import Reporter
from jaxdpo.config import load_config
from jaxdpo.devices.machine import local_machine
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import read_config
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.plan import Lengths, make_plan

ATTENTION = {
    "cpu": ("dense", "tiles"),
    "gpu": ("pallas", "cudnn", "tiles"),
    "tpu": ("splash", "tiles"),
}


def main(arguments: list[str]) -> None:
    """Measures every setting and prints a row for each."""
    values = dict(argument.split("=", 1) for argument in arguments)
    path = values.pop("config", "configs/llama-1b.yaml")
    flops = float(values.pop("flops", "989e12"))
    overrides = [f"{name}={value}" for name, value in values.items()]
    given = ["data.path=unused", "training.folder=unused", *overrides]
    machine, rows, reporter = local_machine(), [], Reporter()
    for attention in ATTENTION[machine.platform]:
        for remat in ("none", "dots", "full"):
            setting = [f"model.attention={attention}", f"model.remat={remat}"]
            reporter.say(f"measuring {' '.join(setting)}")
            config = load_config(path, [*given, *setting])
            model = config_from_hf(
                read_config(find_folder(config.model.path)), config.data.max_length
            )
            drawn = assumed_lengths(1024, 120, 290, config.data.max_length)
            lengths = Lengths(drawn, np.zeros((0, 3), np.int32), len(drawn))
            mesh = make_mesh(config.mesh)
            try:
                plan = make_plan(config, model, lengths, mesh, machine, None)
            except (UserError, jax.errors.JaxRuntimeError) as error:
                rows.append((attention, remat, str(error).split("\n")[0][:60], "", "", ""))
                continue
            peak = f"{plan.compiled.peak / 2**30:.1f}"
            if plan.seconds is None:
                rows.append((attention, remat, plan.verdict, "", "", peak))
                continue
            least, most = plan.seconds
            used = plan.cost.useful / least / flops / mesh.size
            speed = f"{config.batch.size / least:.2f}"
            rows.append(
                (attention, remat, f"{least:.3f} to {most:.3f}", speed, f"{used:.1%}", peak)
            )
    kind = f"{jax.device_count()} × {jax.devices()[0].device_kind}, {path}"
    header = ("attention", "remat", "seconds a step", "pairs/s", "MFU", "peak GiB")
    reporter.table(kind, header, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
