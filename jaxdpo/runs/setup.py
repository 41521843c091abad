"""The set-up of a run: model, planned pairs and reference log-probs, before its first step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.packing.plan import TrainPlan
from jaxdpo.data.pairs import Split
from jaxdpo.data.tokenization.kto_pairs import Examples, LabelledPairs, examples_of
from jaxdpo.data.tokenization.load_pairs import LoadedPairs, load_pairs
from jaxdpo.data.warnings import warn_of_steps, warn_of_weights
from jaxdpo.devices.joining import check_same
from jaxdpo.devices.machine import local_machine
from jaxdpo.errors import UserError
from jaxdpo.hub.exportable import check_exportable
from jaxdpo.hub.policy import Policy, on_mesh, open_policy
from jaxdpo.model.digest import weights_digest
from jaxdpo.model.lora import LoraConfig
from jaxdpo.runs.base import keep_base
from jaxdpo.runs.columns import metadata_digest, read_columns
from jaxdpo.runs.description import model_digests
from jaxdpo.runs.execution import Resolved, resolve
from jaxdpo.runs.folder import DATA_FILE, START_WEIGHTS, RunFolder, shown_digest
from jaxdpo.runs.objective import objective_of, optimizer_of
from jaxdpo.runs.push import check_destinations
from jaxdpo.runs.reference import Reference, open_reference
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs
from jaxdpo.scoring.score import make_score_step
from jaxdpo.storage.files import json_digest
from jaxdpo.training.objective import Objective
from jaxdpo.training.optimizer import Optimizer


@dataclass(frozen=True)
class Setup:
    """A run before its first step.

    Attributes:
      config: Its configuration.
      mesh: The devices.
      policy: The model before training.
      keeps_policy: Whether the model was given in memory, and is to be left as it is.
      objective: What its steps minimise.
      optimizer: Its update rule.
      plan: Which TRAIN pairs form which step.
      train: The TRAIN pairs.
      test: The TEST pairs, or None if there are none.
      probe: Pairs that an export is tried on: the TEST pairs, or the TRAIN pairs in place of none.
      score_step: Scores a microbatch, `(params, lora, batch) → CompletionScores [R, P, 2]`.
    """

    config: RunConfig
    mesh: Mesh
    policy: Policy
    keeps_policy: bool
    objective: Objective
    optimizer: Optimizer
    plan: TrainPlan
    train: PlannedPairs
    test: PlannedPairs | None
    probe: PlannedPairs
    score_step: Callable[..., Any]


def set_up(
    config: RunConfig,
    given_policy: Policy | None,
    given_pairs: LoadedPairs | None,
    mesh: Mesh,
    folder: RunFolder,
    reporter: Reporter,
) -> Setup:
    """Loads, plans and scores; everything that can be refused is refused here.

    Args:
      config: The run's configuration.
      given_policy: A model in memory, used instead of `model.path`; it is left as it is.
      given_pairs: Tokenised pairs in memory, used instead of `data.path`.
      mesh: The mesh.
      folder: The run folder.
      reporter: Where progress is shown.
    """
    check_destinations(config)
    loss, start = config.loss, lambda: load_start(config, given_policy, mesh)
    policy = reporter.timed("loading the model", start)
    reporter.say(f"model   {policy.describe()}, {mesh_text(mesh)}")
    pairs = given_pairs or _load_pairs(config, policy, folder, reporter)
    _report_data(pairs, config, reporter)
    splits = _examples(pairs, config, reporter)
    train, test = splits["TRAIN"], splits["TEST"]
    _check_same_pairs(train, test)
    columns = _read_columns(config, splits)
    digest = _digest(policy)
    reference = open_reference(config, policy, digest, mesh, reporter)
    # By content and not by path: what lies at a path may have changed since the run was begun.
    inputs = {
        START_WEIGHTS: digest,
        **model_digests(policy),
        "weights (reference.path)": reference.digest,
        "config.json (reference.path)": json_digest(dict(reference.model.hf_config)),
        "TRAIN pairs (data.path)": train.fingerprint,
        "TEST pairs (data.path)": test.fingerprint,
        "weights and margins (metadata)": metadata_digest([columns["TRAIN"], columns["TEST"]]),
    }
    folder.check_inputs(inputs)
    folder.write_json(DATA_FILE, _counted(pairs))
    if folder.writes:
        keep_base(folder.path, config, policy)
    # From here on nothing depends on chance: lengths, seed and machine decide the rest.
    resolved = resolve(config, policy.config, train.lengths, test.lengths, mesh, local_machine())
    plan, compute = resolved.plan, resolved.compute
    reporter.say(f"plan    {resolved.describe()}")
    _check_steps(plan, columns["TRAIN"].weights, config, reporter)
    return Setup(
        config,
        mesh,
        policy,
        given_policy is not None,
        objective_of(config, policy.config, compute),
        optimizer_of(config, plan.num_steps),
        plan,
        *_with_reference(config, splits, columns, resolved, reference),
        make_score_step(policy.config, compute, mesh, loss.ld_alpha, loss.use_weighting),
    )


def _check_same_pairs(train: Examples, test: Examples) -> None:
    # Before anything is computed together: plans of other lengths would never meet in a collective.
    splits = {"TRAIN pairs (data.path)": train, "TEST pairs (data.path)": test}
    digests = {name: shown_digest(pairs.fingerprint) for name, pairs in splits.items()}
    check_same("pairs", digests)


def _load_pairs(
    config: RunConfig, policy: Policy, folder: RunFolder, reporter: Reporter
) -> LoadedPairs:
    rejects = folder.path / "rejects.jsonl"
    with reporter.phase("reading and tokenizing the pairs"):
        return load_pairs(config.data, policy.chat, rejects, config.loss.supervised)


def _digest(policy: Policy) -> str:
    # Adapters that training begins with are a part of the model that it begins with.
    weights = policy.params if policy.lora is None else {**policy.params, "lora": policy.lora}
    return weights_digest(weights)


def _examples(pairs: LoadedPairs, config: RunConfig, reporter: Reporter) -> dict[Split, Examples]:
    # KTO's answers one by one, or pairs as they are.
    splits = examples_of(pairs.splits, config.loss.type, config.data.max_length)
    for split, examples in splits.items():
        if isinstance(examples, LabelledPairs):
            reporter.say(f"{split}: {examples.summary()}")
    return splits


def _read_columns(config: RunConfig, splits: Mapping[Split, Examples]) -> dict[Split, PairColumns]:
    return {split: read_columns(config, examples) for split, examples in splits.items()}


def _with_reference(
    config: RunConfig,
    splits: Mapping[Split, Examples],
    columns: Mapping[Split, PairColumns],
    resolved: Resolved,
    reference: Reference,
) -> tuple[PlannedPairs, PlannedPairs | None, PlannedPairs]:
    """Plans the pairs of TRAIN, of TEST if there are any, and those that an export is tried on."""
    train, test, packer = splits["TRAIN"], splits["TEST"], resolved.plan.packer
    planned_train = PlannedPairs(train, packer, resolved.shape, columns["TRAIN"])
    planned_test = None
    if len(test):
        packer = replace(packer, lengths=test.lengths)
        planned_test = PlannedPairs(test, packer, resolved.scoring, columns["TEST"])
        # TEST is scored against the reference whatever TRAIN steps do.
        if config.reference_kind != "none":
            planned_test = reference.scored(planned_test, test, resolved.compute)
    if config.reference_kind == "precomputed":
        # Scored in microbatches of the scoring shape, and trained in those of the steps.
        scoring = replace(planned_train, shape=resolved.scoring)
        scored = reference.scored(scoring, train, resolved.compute)
        planned_train = replace(scored, shape=resolved.shape)
    # Without TEST pairs an export is tried on TRAIN pairs, in the shape in which pairs are scored.
    return (
        planned_train,
        planned_test,
        planned_test or replace(planned_train, shape=resolved.scoring),
    )


def load_start(config: RunConfig, given_policy: Policy | None, mesh: Mesh) -> Policy:
    """Loads the model that training starts from onto the mesh.

    Args:
      config: The run.
      given_policy: A model in memory, used instead of `model.path`; it is left as it is.
      mesh: The mesh.

    Raises:
      UserError: If it can't be loaded, or can't be trained as the configuration says.
    """
    opened = given_policy or open_policy(
        config.model.path,
        config.model.param_dtype,
        config.data.chat_template,
        config.data.max_length,
        config.model.base,
    )
    check_same("model", {"config.json (model.path)": shown_digest(json_digest(opened.hf_config))})
    if config.model.adapter == "continue":
        policy = on_mesh(_continued(config, opened), mesh)
        check_exportable(policy, config.lora, config.export.lora, config.export.dtype)
        return policy
    policy = _merged(config, opened, given_policy is None, mesh)
    # Now, and not after hours of training: an export that fails would leave no model.
    check_exportable(policy, config.lora, config.export.lora, config.export.dtype)
    return policy


def _continued(config: RunConfig, opened: Policy) -> Policy:
    """Returns the base model with the adapters that are trained further beside it."""
    if opened.lora is None or opened.lora_config is None or config.lora is None:
        raise UserError(
            f"model.adapter=continue: {config.model.path} must be a folder of adapters of linear "
            "maps, and lora must say their rank; leave model.adapter out to train a new adapter"
        )
    found, asked = opened.lora_config, config.lora
    # Said and not taken over silently, because the run folder's config.yaml must say what trains.
    # By the scale and not by its rule: alpha / √r of a stabilised rank is another alpha / r.
    same = found.rank == asked.rank and math.isclose(found.scale, asked.scale)
    if not same or found.use_dora != asked.use_dora or set(found.targets) != set(asked.targets):
        flags = [name for name in ("use_rslora", "use_dora") if _differs(name, found, asked)]
        values = [f"lora.{name}={str(getattr(found, name)).lower()}" for name in flags]
        raise UserError(
            f"model.adapter=continue: the adapters of {config.model.path} have another form than "
            f"lora says; set lora.rank={found.rank} lora.alpha={found.alpha:g} "
            + " ".join([*values, f"'lora.targets=[{', '.join(found.targets)}]'"])
        )
    if config.reference_kind == "frozen":
        raise UserError(
            "model.adapter=continue with reference.kind=frozen: a frozen reference is the base "
            "without adapters; use reference.kind=precomputed"
        )
    lora_config = found.model_copy(update={"dropout": asked.dropout, "base": asked.base})
    return replace(opened.quantized(asked.base), lora_config=lora_config)


def _differs(name: str, one: LoraConfig, other: LoraConfig) -> bool:
    return getattr(one, name) != getattr(other, name)


def _merged(config: RunConfig, opened: Policy, own: bool, mesh: Mesh) -> Policy:
    """Returns the model with its adapters added in, on the mesh."""
    # Where training starts is the reference: the model with its adapters.
    base = "full" if config.lora is None else config.lora.base
    if base == "full" and own:
        # Read straight onto the mesh, and merged there; a host may not hold all of it.
        return on_mesh(opened, mesh).merged()
    # Quantised a matrix at a time on the way in, so that the full base is never in memory.
    return on_mesh(opened.merged().quantized(base), mesh)


def _counted(pairs: LoadedPairs) -> dict[str, Any]:
    return {
        split: {"pairs": len(each), "sha256": each.fingerprint}
        for split, each in pairs.splits.items()
    }


def _check_steps(plan: TrainPlan, weights: Any, config: RunConfig, reporter: Reporter) -> None:
    """Says what makes the run learn next to nothing, and refuses to trace steps that it has not."""
    profile, last = config.training.profile, plan.num_steps
    if profile is not None and profile[1] > last:
        raise UserError(
            f"training.profile is {list(profile)}, but the run has {last} steps; name two of them, "
            f"such as [{max(1, last - 1)}, {last}]"
        )
    for warning in (
        warn_of_steps(plan.num_steps, len(plan.packer.lengths), config.batch.size),
        warn_of_weights(weights, config.data.weight_key),
    ):
        if warning is not None:
            reporter.say(f"warning: {warning}")


def _report_data(pairs: LoadedPairs, config: RunConfig, reporter: Reporter) -> None:
    reporter.say(pairs.report.summary())
    for split, tokenized in pairs.splits.items():
        said = tokenized.report.summary(config.data.max_length)
        if said:
            reporter.say(f"{split}: {said}")


def mesh_text(mesh: Mesh) -> str:
    """Returns `8 × cpu (data 2, fsdp 4)`."""
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    platform = mesh.devices.flat[0].device_kind
    return f"{mesh.size} × {platform}" + (f" ({axes})" if axes else "")
