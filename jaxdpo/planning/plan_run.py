"""Plans a run for a machine from its configuration, and shows the plan."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from jaxdpo.cli.console import Reporter
from jaxdpo.cli.ending import command_line
from jaxdpo.cli.settings import load_settings
from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.tokenization.kto_pairs import examples_of
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.devices.machine import local_machine
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import read_config
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.chips import keep_to_cpu, target
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.plan import Lengths, Plan, make_plan
from jaxdpo.planning.show import show_plan, show_suggestion
from jaxdpo.planning.suggest import suggest

# Pairs that packing is planned on: enough for a stable mean, few enough to pack in a moment.
_SAMPLE = 2048
# Stands for a path that a run has and its plan needs not.
_UNUSED = "unused"


class PlanConfig(RunConfig):
    """A run, and the machine and the data that it is planned for."""

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

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in ("prompt", "completion"):
            if name in values and values.get("pairs") is None:
                raise ValueError(f"{name} is read with pairs=…; else data.path has the lengths")
        # A plan writes no run, and with pairs=… it reads no data.
        unused = {"training": {"folder": _UNUSED}}
        if values.get("pairs") is not None:
            unused["data"] = {"path": _UNUSED}
        filled = dict(values)
        for section, default in unused.items():
            given = filled.get(section) or {}
            filled[section] = {**default, **given} if isinstance(given, dict) else given
        return filled


def load_plan(file: str | None, overrides: Sequence[str]) -> PlanConfig:
    """Reads the configuration of a plan from a YAML file, if any, and overrides.

    Raises:
      UserError: For a mistake in it.
    """
    config = load_settings(PlanConfig, file, overrides)
    # A run's own file names its data, which a plan for so many pairs does without; on the command
    # line the two contradict each other.
    if config.pairs is not None and any(o.startswith(("data=", "data.path=")) for o in overrides):
        raise UserError("pairs=… stands in place of data.path; leave one of them out")
    return config


def plan_run(config: PlanConfig) -> Plan:
    """Plans a run and shows the plan.

    Returns:
      The plan: memory by part, work, and times.

    Raises:
      UserError: If the machine or the model is unknown, or the run is impossible there.
    """
    reporter = Reporter()
    wanted = None
    if config.topology is not None:
        keep_to_cpu()
        wanted = target(config.topology)
    model = _model(config)
    with reporter.phase("reading and tokenizing the pairs"):
        lengths = _lengths(config, reporter)
    machine = local_machine() if wanted is None else wanted.machine
    mesh = make_mesh(config.mesh, None if wanted is None else wanted.devices)
    with reporter.phase("compiling the step"):
        plan = make_plan(config, model, lengths, mesh, machine, wanted)
    show_plan(reporter, plan, wanted)
    if wanted is not None:
        with reporter.phase("trying other settings"):
            choices = suggest(config, model, lengths.train, lengths.test, wanted)
        show_suggestion(reporter, plan, choices, model)
    return plan


def planned_command(config: PlanConfig, file: str | None, overrides: Sequence[str]) -> str:
    """Returns the command that starts the run that was planned.

    Args:
      config: The plan.
      file: The YAML file that it was read from, if any.
      overrides: The words that followed.
    """
    own = PlanConfig.model_fields.keys() - RunConfig.model_fields.keys()
    words = [word for word in overrides if word.partition("=")[0] not in own]
    fields = {}
    if config.data.path == _UNUSED:
        fields["data"] = "PAIRS.jsonl"
    if config.training.folder == _UNUSED:
        fields["training__folder"] = "runs/first"
    return command_line("train", *([file] if file else []), *words, **fields)


def _model(config: RunConfig) -> ModelConfig:
    folder = find_folder(config.model.path, weights=False)
    return config_from_hf(read_config(folder), config.data.max_length)


def _lengths(config: PlanConfig, reporter: Reporter) -> Lengths:
    count = config.pairs
    sample = max(_SAMPLE, 8 * config.batch.size)
    if count is not None:
        medians = (config.prompt, config.completion)
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
