"""All that a run needs before its first step: model, planned pairs, reference log-probs."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.packing.plan import BatchShape, Packer
from jaxdpo.data.tokenization.kto_pairs import Examples, LabelledPairs, examples_of
from jaxdpo.data.tokenization.load_pairs import LoadedPairs, load_pairs
from jaxdpo.devices.machine import local_machine
from jaxdpo.devices.sharding import agreed, on_host, shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy, load_policy, on_mesh, open_policy
from jaxdpo.model.decoder import Compute
from jaxdpo.model.digest import weights_digest
from jaxdpo.model.lora import init_lora
from jaxdpo.runs.base import keep_base
from jaxdpo.runs.execution import resolve
from jaxdpo.runs.folder import DATA_FILE, RunFolder
from jaxdpo.scoring.reference import (
    ReferenceCache,
    Scores,
    cache_key,
    compute_and_store,
    load_cached,
)
from jaxdpo.scoring.score import make_score_step, score_pairs
from jaxdpo.training.held_out import EvalData
from jaxdpo.training.loop import TrainData


@dataclass(frozen=True)
class Prepared:
    """What a run works with.

    Attributes:
      policy: The model before training.
      compute: How it is computed.
      train: The TRAIN pairs, planned.
      test: The TEST pairs, or None if there are none.
      frozen: Parameters that stay as they are: LoRA's base, or a frozen reference, or None.
      trainable: What is trained, as it is before step 0; the run may donate it.
      score_step: Scores a microbatch, `(params, lora, batch) → Completions [R, P, 2]`.
    """

    policy: Policy
    compute: Compute
    train: TrainData
    test: EvalData | None
    frozen: Any
    trainable: Any
    score_step: Callable[..., Any]


def prepare(
    config: RunConfig,
    given_policy: Policy | None,
    given_pairs: LoadedPairs | None,
    mesh: Mesh,
    folder: RunFolder,
    reporter: Reporter,
) -> Prepared:
    """Loads, plans and scores; everything that can be refused is refused here.

    Args:
      config: The run's configuration.
      given_policy: A model in memory, used instead of `model.path`; it is left as it is.
      given_pairs: Tokenised pairs in memory, used instead of `data.path`.
      mesh: The mesh.
      folder: The run folder.
      reporter: Where progress is shown.
    """
    policy = load_start(config, given_policy, mesh)
    reporter.say(f"model   {policy.describe()}, {mesh_text(mesh)}")
    pairs = given_pairs or load_pairs(
        config.data, policy.chat, folder.path / "rejects.jsonl", config.loss.supervised
    )
    _report_data(pairs, config, reporter)
    loss = config.loss
    splits = examples_of(pairs.splits, loss.type, config.data.max_length)
    for split, examples in splits.items():
        if isinstance(examples, LabelledPairs):
            reporter.say(f"{split}: {examples.summary()}")
    train, test = splits["TRAIN"], splits["TEST"]
    other = None if config.reference.path is None else _other_reference(config, policy, mesh)
    numbers = {split: _numbers(config, examples) for split, examples in splits.items()}
    digest = weights_digest(policy.params)
    reference_digest = digest if other is None else weights_digest(other.params)
    folder.check_inputs(
        {
            "weights (model.path)": digest,
            "weights (reference.path)": reference_digest,
            "TRAIN pairs (data.path)": train.fingerprint,
            "TEST pairs (data.path)": test.fingerprint,
            "weights and margins (metadata)": _digest_of(
                numbers["TRAIN"][:2] + numbers["TEST"][:2]
            ),
        }
    )
    counted = {
        split: {"pairs": len(each), "sha256": each.fingerprint}
        for split, each in pairs.splits.items()
    }
    folder.write_json(DATA_FILE, counted)
    if folder.writes:
        keep_base(folder.path, config, policy)
    resolved = resolve(config, policy.config, train.lengths, test.lengths, mesh, local_machine())
    compute, plan, shape, scoring = (
        resolved.compute, resolved.plan, resolved.shape, resolved.scoring,
    )  # fmt: skip
    reporter.say(f"plan    {resolved.describe()}")
    score_step = make_score_step(policy.config, compute, mesh, loss.ld_alpha, loss.use_weighting)
    reference = _Reference(
        config, other or policy, reference_digest, compute, plan.packer, scoring, mesh, reporter
    )
    kind = config.reference_kind
    held_out = None
    if len(test):
        packer = replace(plan.packer, lengths=test.lengths)
        logps = None if kind == "none" else reference.logps(test)
        held_out = EvalData(test, packer, scoring, logps, *numbers["TEST"])
    logps = reference.logps(train) if kind == "precomputed" else None
    data = TrainData(train, plan, shape, logps, *numbers["TRAIN"])
    frozen, trainable = _trainable(config, policy, mesh, keep=given_policy is not None)
    return Prepared(policy, compute, data, held_out, frozen, trainable, score_step)


def load_start(config: RunConfig, given_policy: Policy | None, mesh: Mesh) -> Policy:
    """The model that training starts from, on the mesh; of one in memory nothing is changed."""
    opened = given_policy or open_policy(
        config.model.path,
        config.model.param_dtype,
        config.data.chat_template,
        config.data.max_length,
    )
    if opened.lora is not None and config.lora is not None and config.export.lora == "adapter":
        raise UserError(
            f"{config.model.path} is an adapter itself, so a new adapter would belong to a model "
            "that is nowhere on disk; set export.lora=merged"
        )
    # Where training starts is the reference: the model with its adapters.
    base = "full" if config.lora is None else config.lora.base
    if base == "full" and given_policy is None:
        return on_mesh(opened, mesh).merged()
    return on_mesh(opened.merged().quantized(base), mesh)


@dataclass(frozen=True)
class _Reference:
    """The model whose log-probs are the reference, and how it scores pairs.

    Attributes:
      config: The run's configuration.
      model: The model.
      digest: Of its weights.
      compute: How it is computed.
      packer: Packing, of the TRAIN pairs.
      shape: A shape that holds every microbatch.
      mesh: The mesh.
      reporter: Where progress is shown.
    """

    config: RunConfig
    model: Policy
    digest: str
    compute: Compute
    packer: Packer
    shape: BatchShape
    mesh: Mesh
    reporter: Reporter

    def logps(self, split: Examples) -> np.ndarray:
        """Log-probs of a split's completions, f32 `[N, 2]`: cached ones, or computed and stored."""
        loss, model = self.config.loss, self.model
        key = cache_key(
            self.digest,
            split.fingerprint,
            self.compute.dtype.name,
            model.config.model_dump_json(),
            loss.ld_alpha,
        )
        cache = ReferenceCache(self.config.data.cache_folder() / "reference", key, len(split))
        cached = load_cached(cache)
        if agreed(cached is not None):
            assert cached is not None
            return cached
        packer = replace(self.packer, lengths=split.lengths)
        packing = hashlib.sha256(f"{packer.config} {self.shape}".encode()).hexdigest()
        # The same arguments as for evaluation, so that they share a compile.
        step = make_score_step(
            model.config, self.compute, self.mesh, loss.ld_alpha, loss.use_weighting
        )

        def score_from(first: int) -> Scores:
            scores = score_pairs(
                step, model.params, None, split, packer, self.shape, self.mesh, first
            )
            return ((indices, np.asarray(found.logps)) for indices, found in scores)

        with self.reporter.counting("reference log-probs", len(split)) as counted:
            return compute_and_store(cache, packing, lambda first: counted(score_from(first)))


def _digest_of(arrays: tuple[np.ndarray | None, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _other_reference(config: RunConfig, policy: Policy, mesh: Mesh) -> Policy:
    """The model at `reference.path`, which must read the same token ids as the policy."""
    path = config.reference.path
    assert path is not None
    context = config.data.max_length
    other = load_policy(path, config.model.param_dtype, mesh, context=context).merged()
    if other.chat.tokenizer.get_vocab() != policy.chat.tokenizer.get_vocab():
        raise UserError(
            f"reference.path {path}: its vocabulary is not that of {policy.source}, so it cannot "
            "score the same tokens; use a model with the same tokenizer"
        )
    return other


def _is_number(value: Any, at_least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= at_least


def _numbers(
    config: RunConfig, pairs: Examples
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The pairs' weights, margins and labels, f32 `[N]` each, where there are any."""

    def column(option: str, key: str | None) -> np.ndarray | None:
        if key is None:
            return None
        found = [pairs.metadata(index).get(key) for index in range(len(pairs))]
        for index, value in enumerate(found):
            if not _is_number(value, at_least=0.0 if option == "weight_key" else -math.inf):
                raise UserError(
                    f"{pairs.source(index)}: metadata.{key} is {value!r}, but data.{option} reads "
                    "it as a number of every pair"
                    + (", 0 or more" if option == "weight_key" else "")
                )
        return np.array(found, np.float32)

    weights = column("weight_key", config.data.weight_key)
    margins = column("margin_key", config.data.margin_key)
    return weights, margins, pairs.labels if isinstance(pairs, LabelledPairs) else None


def _report_data(pairs: LoadedPairs, config: RunConfig, reporter: Reporter) -> None:
    reporter.say(pairs.report.summary())
    for split, tokenized in pairs.splits.items():
        said = tokenized.report.summary(config.data.max_length)
        if said:
            reporter.say(f"{split}: {said}")


def _trainable(config: RunConfig, policy: Policy, mesh: Mesh, keep: bool) -> tuple[Any, Any]:
    """(what is frozen, what is trained); training donates the latter."""
    if config.lora is None:
        # A moving reference starts as the frozen one does; the run keeps it in its state.
        frozen = policy.params if config.reference_kind in ("frozen", "moving") else None
        if config.reference.offload:
            frozen = jax.device_put(policy.params, on_host(policy.params, mesh))
        donated = not keep and frozen is not policy.params
        return frozen, policy.params if donated else jax.tree.map(jnp.copy, policy.params)
    lora_config, model = config.lora, policy.config

    def initial(key: jax.Array) -> Any:
        return init_lora(model, lora_config, key)

    key = jax.random.key(config.training.seed)
    shardings = shardings_for(jax.eval_shape(initial, key), mesh)
    return policy.params, jax.jit(initial, out_shardings=shardings)(key)


def mesh_text(mesh: Mesh) -> str:
    """`8 × cpu (data 2, fsdp 4)`."""
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    platform = mesh.devices.flat[0].device_kind
    return f"{mesh.size} × {platform}" + (f" ({axes})" if axes else "")
