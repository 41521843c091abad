"""The export of a run: rounded, scored as it is written, read back, and scored once more."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxdpo.cli.console import Reporter
from jaxdpo.devices.machine import free_memory
from jaxdpo.devices.sharding import agreed, path_name, shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy, on_mesh, open_policy
from jaxdpo.model.decoder import Params, abstract_params
from jaxdpo.model.dtypes import stays_fp32
from jaxdpo.model.lora import merged_kernel
from jaxdpo.model.quantized import is_quantized
from jaxdpo.runs.base import find_base
from jaxdpo.runs.exported_step import ExportedStep
from jaxdpo.runs.folder import RunFolder
from jaxdpo.runs.memory import device_bytes
from jaxdpo.runs.rounding import rounding_loss, rounding_loss_of_all
from jaxdpo.runs.setup import Setup
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.score import make_score_step
from jaxdpo.training.state import as_float32

# Share of what was learned whose loss in rounding is worth a word: fp32 loses a millionth.
_NOTED_LOSS = 0.01
# Share of the free memory that a second model may take; scoring it needs some, too.
_FULL = 0.8
# Most that a log-prob of the folder read back may be off, of its size, by the activations' dtype:
# the numbers are the same, but adapters that are stacked are summed in another order.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Export:
    """The model that a run exports, before and after it is written.

    Attributes:
      policy: The policy with the weights that the folder will hold; without room for them, with
        those that were trained.
      dtype: Dtype of the folder's weights.
      rounded: Whether they differ from those that the run evaluated last.
      rounding_loss: Share of what was learned that rounding loses; None if nothing is rounded.
      logps: f32 `[n, 2]`, log-probs of the first pairs under the folder's weights, in nats; None
        where there was no memory for those weights.
    """

    policy: Policy
    dtype: str
    rounded: bool = False
    rounding_loss: float | None = None
    logps: np.ndarray | None = None

    @property
    def as_written(self) -> bool:
        """True if the weights that are scored are those of the folder."""
        return self.logps is not None

    def describe(self) -> dict[str, Any]:
        """Returns what a run's summary says of its export."""
        of = "the exported weights" if self.as_written else "the weights before rounding"
        return {"dtype": self.dtype, "test_is_of": of}


def export_of(
    setup: Setup, exported: ExportedStep, folder: RunFolder, reporter: Reporter
) -> Export:
    """Returns what a run exports, with the very weights that its folder will hold.

    Args:
      setup: The run.
      exported: The step that is exported.
      folder: The run folder.
      reporter: Says what rounding loses.
    """
    config, trained = setup.config, trained_policy(setup, exported.trained)
    if trained.lora is not None and config.export.lora == "adapter":
        return Export(trained, "float32", logps=_first_logps(setup, trained))
    dtype = export_dtype(setup)
    if trained.lora is None:
        # What trained and not what it was rounded to in each step: fp32 is written as it is.
        exact = replace(trained, params=exported.trained)
        lost = None if dtype == "float32" else _loss_of_all(setup, exact.params, folder, dtype)
        rounded = {leaf.dtype.name for leaf in jax.tree.leaves(trained.params)} != {dtype}
    else:
        exact, lost, rounded = trained, rounding_loss(trained, dtype), True
    if lost is not None and lost > _NOTED_LOSS:
        reporter.say(_loss_text(setup, lost, dtype))
    held = _held_dtype(setup, dtype)
    # Parameters that trained in fp32 and are written in it are there already.
    copied = trained.lora is not None or dtype != "float32"
    if copied and not _has_room(setup, held):
        reporter.say(
            "warning: there is no memory to hold the exported weights beside the trained ones, so "
            "TEST is measured on the trained ones, and the folder is not scored after it is "
            "written; jaxdpo score model=FOLDER does that"
        )
        return Export(exact, dtype, rounded, lost)
    params = _as_written(exact, jnp.dtype(dtype), jnp.dtype(held))
    written = replace(trained, params=params, lora=None, lora_config=None)
    return Export(written, dtype, rounded, lost, _first_logps(setup, written))


def trained_policy(setup: Setup, trained: Params) -> Policy:
    """Returns the model with what was trained.

    Args:
      setup: The run.
      trained: The parameters, or with LoRA the adapters.
    """
    params, lora = setup.objective.split(trained, setup.policy.params)
    if lora is None:
        return replace(setup.policy, params=params)
    return replace(setup.policy, lora=lora, lora_config=setup.objective.compute.lora)


def export_dtype(setup: Setup) -> str:
    """Returns the dtype of the exported weights: by default that of the base model's files."""
    config = setup.config
    return config.export.dtype or setup.policy.file_dtype or config.model.param_dtype


def _held_dtype(setup: Setup, dtype: str) -> str:
    """Returns the dtype to hold written weights in.

    It is that of training where that holds them exactly, so that the programs which score and
    answer need not be compiled again.
    """
    return setup.config.model.param_dtype if dtype == "bfloat16" else "float32"


def _loss_of_all(setup: Setup, trained: Params, folder: RunFolder, dtype: str) -> float | None:
    """Returns the share that rounding loses; None if the base can't be read any more."""
    model, base = setup.config.model, setup.policy.params
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(base)):
        # Training took its place; its files still hold it.
        try:
            opened = open_policy(find_base(folder.path, model.path), "float32", base=model.base)
        except UserError:
            return None
        base = opened.merged().params
    return rounding_loss_of_all(trained, base, dtype, setup.mesh)


def _loss_text(setup: Setup, lost: float, dtype: str) -> str:
    adapters = setup.config.lora is not None
    what = "merged weights" if adapters else "weights"
    learned = "the adapters learned" if adapters else "training changed"
    keeps = "export.lora=adapter keeps all of it, and " if adapters else ""
    share = f"loses {lost:.0%} of what {learned}"
    if lost > 1:
        # A base of more bits than are written is rounded as well.
        share = f"moves them {lost:.1f} times as far as what {learned}"
    return (
        f"warning: rounding the {what} to {dtype} {share} (‖rounding‖ / ‖change‖); {keeps}"
        f"export.dtype=float32 {'too' if adapters else 'keeps all of it'}, in twice the space"
    )


def _has_room(setup: Setup, held: str) -> bool:
    """Tells whether every process has memory for the exported model beside the trained one."""
    shapes = abstract_params(setup.policy.config, jnp.dtype(held))
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings_for(shapes, setup.mesh),
    )
    return agreed(device_bytes(placed) <= _FULL * free_memory())


def _as_written(policy: Policy, dtype: Any, held: Any) -> Params:
    """Merges adapters, if there are any, and rounds parameters as a file of `dtype` does."""
    lora, scale = policy.lora, 0.0 if policy.lora_config is None else policy.lora_config.scale

    def rounded(path: Any, leaf: Any) -> jax.Array:
        _, part, linear, *_ = (*path_name(path).split("/"), "", "")
        pairs = {} if lora is None else lora["layers"].get(part, {})
        pair = pairs.get(linear) if path_name(path).endswith("/kernel") else None
        if is_quantized(leaf):
            return _by_layer(leaf, pair, scale, dtype).astype(held)
        if pair is not None:
            leaf = merged_kernel(leaf.astype(jnp.float32), pair, scale)
        return leaf if stays_fp32(path_name(path)) else leaf.astype(dtype).astype(held)

    return jax.tree.map_with_path(rounded, policy.params, is_leaf=is_quantized)


def _by_layer(kernel: Any, pair: Any, scale: float, dtype: Any) -> jax.Array:
    # Layer by layer: a stack of kernels in fp32 takes seven times what it does in nf4.
    layers = []
    for layer in range(kernel.shape[0]):
        of_layer = jax.tree.map(lambda leaf, at=layer: leaf[at], kernel).dequantized(jnp.float32)
        if pair is not None:
            of_layer = merged_kernel(
                of_layer, {side: values[layer] for side, values in pair.items()}, scale
            )
        layers.append(of_layer.astype(dtype))
    return jnp.stack(layers)


def write_export(setup: Setup, export: Export, folder: Path, card: str) -> None:
    """Writes the Hugging Face folder of what a run exports.

    Args:
      setup: The run.
      export: From `export_of`.
      folder: Where to.
      card: The model card.

    Raises:
      UserError: If it can't be written.
    """
    policy = replace(export.policy, card=card)
    full = policy.lora is not None and policy.base == "full"
    if full and setup.config.export.lora == "merged" and export.dtype == "float32":
        # Merged in fp32 from the start: rounded to the base's dtype first, nothing would be kept.
        policy = replace(policy, params=as_float32(policy.params))
    adapter = setup.config.export.lora == "adapter"
    policy.save(folder, setup.config.export.lora, None if adapter else export.dtype)
    if jax.process_count() > 1:
        # The first process writes, and all read.
        multihost_utils.sync_global_devices("exported")


def check_read_back(setup: Setup, export: Export, folder: Path) -> dict[str, Any] | None:
    """Reads the exported folder and compares its log-probs of some pairs with those in memory.

    Args:
      setup: The run.
      export: What was written there.
      folder: The folder.

    Returns:
      How many pairs were compared, and the largest difference of a log-prob in nats; None where
      there was no room for a second model.

    Raises:
      UserError: If the folder holds another model than was written.
    """
    config, expected = setup.config, export.logps
    adapter = config.lora is not None and config.export.lora == "adapter"
    base = config.lora.base if adapter and config.lora is not None else "full"
    # With an adapter beneath, both are exported for the base as it is on disk. A base that was
    # rounded or quantized with the adapter in it is another one than a base rounded without it.
    exact = base == "full" and config.model.param_dtype == "float32"
    over = adapter and setup.policy.beneath is not None and not exact
    held = config.model.param_dtype if adapter else _held_dtype(setup, export.dtype)
    if expected is None or over or not _has_room(setup, held):
        return None
    named_base = config.model.base if adapter else None
    read = open_policy(str(folder), held, None, config.data.max_length, named_base)
    found = _first_logps(setup, on_mesh(read.quantized(base), setup.mesh))
    off = np.abs(found - expected)
    tolerance = _TOLERANCES[setup.objective.compute.dtype.name]
    if not np.all(off <= tolerance * np.maximum(1, np.abs(expected))):
        pair, side = np.unravel_index(np.nanargmax(np.nan_to_num(off, nan=np.inf)), off.shape)
        raise UserError(
            f"{folder}: read back, it is not the model that was written: its log-prob of the "
            f"{('chosen', 'rejected')[side]} answer of pair {pair} of {len(off)} is "
            f"{found[pair, side]:.4f}, and {expected[pair, side]:.4f} was that of the weights in "
            "memory. Please report this with the model's config.json; the checkpoints hold what "
            "was trained"
        )
    return {"pairs": len(off), "largest_difference": float(off.max())}


def _first_logps(setup: Setup, policy: Policy) -> np.ndarray:
    """Returns log-probs of the first microbatch's pairs, f32 `[n, 2]`."""
    compute, loss, step = setup.objective.compute, setup.config.loss, setup.score_step
    lora = policy.lora_config
    other_scale = lora is not None and (compute.lora is None or compute.lora.scale != lora.scale)
    if policy.config != setup.policy.config or other_scale:
        step = make_score_step(
            policy.config,
            replace(compute, lora=lora),
            setup.mesh,
            loss.ld_alpha,
            loss.use_weighting,
        )
    scored = score_pairs(step, policy.params, policy.lora, setup.probe, setup.mesh, count=1)
    return next(np.asarray(scores.logps) for _, scores in scored)
