"""`python -m jaxdpo.plan CONFIG.yaml topology=v5e:4x4`: will a run fit a machine, and how fast?"""

import sys
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxdpo.cli.command import run_command
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import split_arguments
from jaxdpo.config import RunConfig, load_config
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.tokenization.kto_pairs import examples_of
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.devices.machine import local_machine
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import find_folder, read_config
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.chips import keep_to_cpu, target
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.plan import Lengths, make_plan
from jaxdpo.planning.show import show_plan, show_suggestion
from jaxdpo.planning.suggest import suggest

USAGE = """usage: python -m jaxdpo.plan [CONFIG.yaml] [field=value …] [section.field=value …]

Says whether a run fits a machine, and how fast it will be: the training step is compiled for it,
from any machine and without weights. For the machine at hand a few steps are timed as well.
Fields with a section are those of `python -m jaxdpo.train`. The others:
"""
# Pairs that packing is planned on.
_SAMPLE = 2048


class PlanConfig(BaseModel):
    """What a run is planned for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topology: str | None = Field(
        default=None,
        description="machine: a TPU slice by its shape in chips (v5e:4x4, v5p:2x4x4, v6e:16x16), "
        "or h100:8; default: the one at hand",
    )
    pairs: int | None = Field(
        default=None,
        ge=1,
        description="plan for so many pairs of usual lengths; default: those at data.path",
    )
    prompt: int = Field(default=120, ge=1, description="with pairs: median tokens of a prompt")
    completion: int = Field(
        default=290, ge=1, description="with pairs: median tokens of a completion"
    )


def main(arguments: list[str]) -> None:
    """Plans as the arguments say."""
    if not arguments or {"-h", "--help"} & set(arguments):
        fields = PlanConfig.model_fields.items()
        print(
            USAGE + "\n".join(f"  {name}={f.default}\n      {f.description}" for name, f in fields)
        )
        return
    plan_config, config = parse(arguments)
    reporter = Reporter()
    wanted = None
    if plan_config.topology is not None:
        keep_to_cpu()
        wanted = target(plan_config.topology)
    model = _model(config)
    lengths = _lengths(plan_config, config, reporter)
    machine = local_machine() if wanted is None else wanted.machine
    mesh = make_mesh(config.mesh, None if wanted is None else wanted.devices)
    plan = make_plan(config, model, lengths, mesh, machine, wanted)
    show_plan(reporter, plan, wanted)
    if wanted is not None:
        choices = suggest(config, model, lengths.train, lengths.test, wanted)
        show_suggestion(reporter, plan, choices, model)


def parse(arguments: list[str]) -> tuple[PlanConfig, RunConfig]:
    """What a command line says of the plan, and of the run.

    Raises:
      UserError: For a mistake in it.
    """
    own: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or "." in name:
            rest.append(argument)
        elif name in PlanConfig.model_fields:
            own[name] = text if name == "topology" else yaml.safe_load(text)
        else:
            raise UserError(
                f"{argument}: unknown field; there are {', '.join(PlanConfig.model_fields)}, and "
                "section.field=value"
            )
    try:
        plan_config = PlanConfig.model_validate(own)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{problem['loc'][0]}: {problem['msg']}") from None
    for name in ("prompt", "completion"):
        if name in own and plan_config.pairs is None:
            raise UserError(f"{name} is read with pairs=…; without it, lengths are data.path's")
    # A plan writes no run, and with pairs=… it reads no data.
    unused = ["training.folder=unused"]
    if plan_config.pairs is not None:
        if any(argument.startswith("data.path=") for argument in rest):
            raise UserError("pairs=… stands in place of data.path; leave one of them out")
        unused.append("data.path=unused")
    path, overrides = split_arguments(rest)
    return plan_config, load_config(path, [*overrides, *unused])


def _model(config: RunConfig) -> ModelConfig:
    folder = find_folder(config.model.path, weights=False)
    return config_from_hf(read_config(folder), config.data.max_length)


def _lengths(plan_config: PlanConfig, config: RunConfig, reporter: Reporter) -> Lengths:
    count = plan_config.pairs
    sample = max(_SAMPLE, 8 * config.batch.size)
    if count is not None:
        medians = (plan_config.prompt, plan_config.completion)
        lengths = assumed_lengths(min(count, sample), *medians, config.data.max_length)
        reporter.say(
            "lengths {} and {} tokens in the median of prompts and completions: assumed".format(
                *medians
            )
        )
        return Lengths(lengths, np.zeros((0, 3), np.int32), count)
    chat = load_chat(str(find_folder(config.model.path, weights=False)), config.data.chat_template)
    loaded = load_pairs(config.data, chat, supervised=config.loss.supervised)
    splits = examples_of(loaded.splits, config.loss.type, config.data.max_length)
    train, test = splits["TRAIN"].lengths, splits["TEST"].lengths
    chosen = np.random.default_rng(0).permutation(len(train))[:sample]
    return Lengths(train[chosen], test[:sample], len(train))


if __name__ == "__main__":
    sys.exit(run_command(main))
