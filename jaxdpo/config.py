"""The configuration of a training run: small configs, each defined beside what it configures.

config = load_config("configs/quickstart.yaml", ["loss.beta=0.2", "lora.rank=8"])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from jaxdpo.cli.help import fields_help
from jaxdpo.cli.settings import load_settings, read_yaml
from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.devices.distributed_config import DistributedConfig
from jaxdpo.devices.sharding import MeshConfig
from jaxdpo.errors import nearest
from jaxdpo.evaluation.answer_health import WatchConfig
from jaxdpo.evaluation.criteria.spec import label_of
from jaxdpo.losses import LossConfig
from jaxdpo.model.lora import LoraConfig
from jaxdpo.sampling import SamplingConfig
from jaxdpo.scoring.reference import ReferenceConfig, ReferenceKind
from jaxdpo.storage.buckets import usable
from jaxdpo.storage.continuation import check_unchanged
from jaxdpo.storage.files import shipped
from jaxdpo.training.best_step import RANKED_BY, StopConfig
from jaxdpo.training.checkpoint import CheckpointConfig
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.trackers.opening import TrackerName

Dtype = Literal["float32", "bfloat16"]


class PolicyConfig(BaseModel):
    """The supervised model that is aligned, and how it is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(usable), AfterValidator(shipped)] = Field(
        description="Hugging Face folder, here or in a bucket (gs://, s3://), or org/name on the "
        "Hub",
        json_schema_extra={"bucket": True},
    )
    base: str | None = Field(
        default=None,
        description="base model of the adapter folder at path, in place of the one that it names",
    )
    adapter: Literal["merge", "continue"] = Field(
        default="merge",
        description="what is done with the adapter at path: merge it into the base, beneath a new "
        "one; or continue to train it, with what it is now as the reference",
    )
    param_dtype: Dtype = Field(
        default="float32",
        description="dtype that the parameters are loaded and computed in; those that train are "
        "kept in float32 beside it, so that small updates add up",
    )
    compute_dtype: Dtype | None = Field(
        default=None,
        description="dtype of activations and products, whose sums are float32 either way; "
        "default: float32 on CPU, bfloat16 elsewhere",
    )
    attention: Literal["auto", "dense", "tiles", "splash", "cudnn", "pallas"] = Field(
        default="auto",
        description="dense: mask over the packed row; tiles: the parts of it that hold anything; "
        "splash: a kernel on TPUs; pallas, cudnn: kernels on GPUs, of the same parts or of whole "
        "sequences; auto: splash on TPUs, elsewhere tiles",
    )
    remat: Literal["auto", "none", "dots", "full"] = Field(
        default="auto",
        description="what the backward pass computes again: nothing, all but matrix products, all; "
        "auto: as little as the devices' memory allows, on a CPU all, which costs no time there",
    )


class TrainingConfig(BaseModel):
    """The run: how long, where to, and what is looked at on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[str, AfterValidator(usable)] = Field(
        description="run folder, here or in a bucket; the same one again continues the run",
        json_schema_extra={"bucket": True},
    )
    overwrite: bool = Field(
        default=False,
        description="begin anew in a folder that holds another run, or something else",
        json_schema_extra={"also": "overwrite"},
    )
    epochs: float = Field(
        default=1.0, gt=0, description="passes over the TRAIN pairs; more of them continue a run"
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="optimizer steps, if fewer than that"
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the pairs' order, of LoRA and its dropout"
    )
    deterministic: bool = Field(
        default=False,
        description="on GPUs, add in one order always: the same run gives the same bits, by slower "
        "operations; elsewhere it does so anyway",
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps between evaluations; default: a tenth of the run",
    )
    completions: int = Field(
        default=3, ge=0, description="TEST prompts that are answered before and after training"
    )
    report_to: tuple[TrackerName, ...] = Field(
        default=("tensorboard",),
        description="experiment trackers that get all metrics, the settings, the page and the "
        "curves, beside metrics.jsonl",
    )
    neftune_alpha: float | None = Field(
        default=None,
        gt=0,
        description="NEFTune: size of the noise on the embeddings in supervised fine-tuning, such "
        "as 5; null: none",
    )
    profile: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="first and last optimizer step, such as [10, 12], of a trace by JAX's "
        "profiler, which is written to profile/ of the run folder; null: none",
    )
    watch: WatchConfig = Field(
        default=WatchConfig(), description="answers to TEST prompts at each evaluation"
    )
    stop: StopConfig | None = Field(
        default=None,
        description="when the run ends early and exports its best step; null: never",
    )

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        if self.profile is not None and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile is {list(self.profile)}: the first step is after the last")
        return self


class ExportConfig(BaseModel):
    """The Hugging Face folder a run ends with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: Literal["merged", "adapter"] = Field(
        default="merged", description="adapters added into the weights, or a PEFT adapter folder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="dtype of the weights; default: that of the base model's files",
    )
    step: Literal["last", "best"] = Field(
        default="last",
        description="the step that is exported; a run that training.stop ends exports its best",
    )
    hub: str | None = Field(
        default=None,
        description="org/name on the Hugging Face Hub that the model is uploaded to, privately",
    )


class RunConfig(BaseModel):
    """Everything that a training run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: PolicyConfig = Field(description="the model")
    data: DataConfig = Field(description="the preference pairs")
    training: TrainingConfig = Field(description="the run")
    batch: BatchConfig = Field(default=BatchConfig(), description="steps and rows")
    loss: LossConfig = Field(default=LossConfig(), description="the objective")
    reference: ReferenceConfig = Field(default=ReferenceConfig(), description="the reference model")
    lora: LoraConfig | None = Field(
        default=None, description="adapters; null: all parameters are trained"
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="the update rule")
    mesh: MeshConfig = Field(default=MeshConfig(), description="devices")
    distributed: DistributedConfig = Field(
        default=DistributedConfig(), description="limits on waiting for other processes"
    )
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="checkpoints")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="completions in the summary"
    )
    export: ExportConfig = Field(default=ExportConfig(), description="the exported model")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        reference, losses = self.reference, " and ".join(self.loss.type)
        given = reference.kind not in (None, "none") or reference.path is not None
        if given and not self.loss.reads_reference:
            raise ValueError(
                f"reference would be ignored: {losses} read no reference model; leave it out"
            )
        if self.data.turns != "last" and not self.loss.supervised:
            raise ValueError(
                f"data.turns is {self.data.turns!r}, but {losses} compare last answers alone; it "
                "is read with loss.type=sft"
            )
        self.loss.check_read("data.weight_key", self.data.weight_key)
        self.loss.check_read("data.margin_key", self.data.margin_key)
        if self.data.weight_key is not None and self.loss.sorts:
            raise ValueError("data.weight_key has no meaning for losses that sort the pairs (aot)")
        if self.training.neftune_alpha is not None and not self.loss.supervised:
            raise ValueError(
                f"training.neftune_alpha is noise for supervised fine-tuning; under it {losses} "
                "would compare a noisy policy with a reference without noise; leave it out"
            )
        self._check_best()
        if self.optimizer.loraplus_lr_ratio is not None and self.lora is None:
            raise ValueError(
                "optimizer.loraplus_lr_ratio is the ratio of two rates of an adapter, and there is "
                "none; set lora.rank, or leave it out"
            )
        if reference.kind == "adapter_off" and self.lora is None:
            raise ValueError(
                "reference.kind is adapter_off, but there is no adapter to switch off; set "
                "lora.rank, or reference.kind=precomputed"
            )
        if reference.kind in ("frozen", "moving") and self.lora is not None:
            raise ValueError(
                f"reference.kind is {reference.kind}, but under LoRA the base model is frozen; set "
                "reference.kind=adapter_off, or precomputed"
            )
        return self

    def _check_best(self) -> None:
        """Checks what is kept, exported and stopped by `checkpoint.best`.

        Raises:
          ValueError: If an option has no best step to work with, or no such metric is measured.
        """
        best = self.checkpoint.best
        if best is None:
            for option, given in (
                ("export.step=best", self.export.step == "best"),
                ("training.stop", self.training.stop is not None),
            ):
                if given:
                    raise ValueError(
                        f"{option} exports the best step, and none is kept; set "
                        "checkpoint.best=loss, accuracy, margin or a criterion of training.watch"
                    )
            return
        criteria = [label_of(spec) for spec in self.training.watch.criteria or ()]
        known = [*RANKED_BY, *criteria]
        if best not in known:
            raise ValueError(
                f"checkpoint.best is {best!r}{nearest(best, known)}; there are {', '.join(known)}"
                + ("" if criteria else ", and the criteria of training.watch, of which none is set")
            )
        if best in ("accuracy", "margin") and self.loss.supervised:
            raise ValueError(
                f"checkpoint.best={best} compares answers, and supervised fine-tuning reads one; "
                "set checkpoint.best=loss"
            )

    @property
    def reference_kind(self) -> ReferenceKind:
        """The source of the reference log-probs, the default resolved."""
        return self.reference.kind or ("precomputed" if self.loss.reads_reference else "none")


# What may differ when a run is continued: it changes neither the data nor the arithmetic. (The
# contents of the files at these paths are compared, and a run may be made longer but not shorter.)
CHANGEABLE = (
    "checkpoint",
    "data.cache_dir",
    "data.path",
    "data.processes",
    "distributed",
    "export",
    "mesh",
    "model.base",
    "model.path",
    "sampling",
    "training.completions",
    "training.epochs",
    "training.folder",
    "training.max_steps",
    "training.overwrite",
    "training.profile",
    "training.report_to",
    "training.stop",
    "training.watch",
)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file, if any, and applies `section.field=value` overrides, values in YAML too.

    Raises:
      UserError: For a missing or malformed file, an unknown key (naming the nearest known one) or a
        value out of its range.
    """
    return load_settings(RunConfig, path, overrides)


def to_yaml(config: RunConfig) -> str:
    """Writes the whole configuration, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat(config: BaseModel) -> dict[str, Any]:
    """Flattens the configuration to `{"section.field": value}`."""
    flattened = {}
    for section, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flattened |= {f"{section}.{field}": entry for field, entry in value.items()}
        else:
            flattened[section] = value
    return flattened


def check_continues(config: RunConfig, path: Path) -> RunConfig:
    """Refuses to continue a run under another configuration.

    Args:
      config: The configuration now.
      path: The resolved configuration that the run was started with.

    Returns:
      The configuration that the run had.

    Raises:
      UserError: Naming each field that differs, with both values.
    """
    before = RunConfig.model_validate(read_yaml(path))
    check_unchanged(
        f"{path.parent} holds a run with another configuration",
        flat(before),
        flat(config),
        "set training.folder to a new folder",
        lambda field: any(field == free or field.startswith(free + ".") for free in CHANGEABLE),
    )
    return before


def help_text() -> str:
    """Returns every field of the configuration, its type and default, and a line of help."""
    return fields_help(RunConfig)
