"""Models for a server: loaded, the arrays that several have in common held once."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.read import on_devices
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import Params, unstacked_tree
from jaxdpo.model.digest import weights_digest
from jaxdpo.runs.load import open_source
from jaxdpo.sampling.pool import Model, RowPool
from jaxdpo.serving.answering import AnsweringModel
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.scheduler import Scheduler
from jaxdpo.storage.files import cache_folder

# Length of a new pool's ring; it grows with what is asked for.
_FIRST_SLOTS = 128
_unstacked = jax.jit(unstacked_tree, static_argnums=1)


def load_models(config: ServeConfig) -> dict[str, AnsweringModel]:
    """Loads the models of a server; their threads are not running yet.

        models = load_models(ServeConfig(models={"base": "models/sft", "dpo": "runs/dpo"}))

    Args:
      config: Places, batch size, context and dtype.

    Raises:
      UserError: If a model is missing, damaged or not supported, or its context is too small.
    """
    keep_compiled(cache_folder(None) / "compiled")
    places = config.places
    # Of one model alone nothing is compared.
    shared = SharedArrays() if len(places) > 1 else None
    return {
        name: answering_model(name, open_source(place, config.chat_template), config, shared)
        for name, place in places.items()
    }


class SharedArrays:
    """Arrays on the device, each different one once.

    Adapters of one base are loaded with the base each, whatever kind of folder they lie in; what is
    the same array, by its values, then takes the place of the second copy.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, jax.Array] = {}
        self._unstacked: dict[tuple[int, ...], Params] = {}

    def unstacked(self, params: Params, dtype: Any) -> Params:
        """Returns parameters as the engine takes them, the same ones where all arrays are the same.

        Args:
          params: Parameters, in files or on a device.
          dtype: Of the activations.
        """
        params = jax.tree.map(self._once, params)
        key = tuple(id(leaf) for leaf in jax.tree.leaves(params))
        if key not in self._unstacked:
            self._unstacked[key] = _unstacked(params, dtype)
        return self._unstacked[key]

    def _once(self, leaf: Any) -> jax.Array:
        # One array after the other, so that never more than one is held twice.
        loaded = jax.tree.leaves(on_devices({"leaf": leaf}, None))[0]
        digest = weights_digest({"leaf": loaded})
        kept = self._arrays.setdefault(digest, loaded)
        # A digest of 64 bits is no proof.
        return kept if kept is loaded or bool(jnp.array_equal(kept, loaded)) else loaded


def answering_model(
    name: str, policy: Policy, config: ServeConfig, shared: SharedArrays | None = None
) -> AnsweringModel:
    """Makes a model that answers of a policy.

    Args:
      name: The name that requests have it under.
      policy: The model, loaded or only opened.
      config: Batch size, context, dtype, and how many requests may wait.
      shared: Arrays that are there already.

    Raises:
      UserError: If the context is longer than the model's positions.
    """
    dtype = jnp.dtype(config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    if shared is None:
        params = _unstacked(on_devices(policy.params, None), dtype)
    else:
        params = shared.unstacked(policy.params, dtype)
    # Adapters are never shared: they are what tells models of one base apart.
    lora = policy.lora
    if lora is not None:
        lora = _unstacked(on_devices(lora, None), dtype)
    # The engine is given the weights as it computes with them; the stacked ones are let go.
    model = Model(
        policy.config,
        {},
        None,
        policy.chat.end_ids,
        Compute(dtype, "dense", "none", policy.lora_config),
    )
    make_pool = partial(RowPool, model, config.batch_size, _FIRST_SLOTS, (params, lora))
    scheduler = Scheduler(make_pool, policy.chat.end_ids, config.limits.waiting, name)
    context = _context(name, policy, config.context)
    return AnsweringModel(name, policy.chat, context, int(time.time()), scheduler)


def _context(name: str, policy: Policy, wanted: int | None) -> int:
    """Returns the most tokens of a prompt with its answer."""
    learned = policy.config.learned_positions
    trained = learned or policy.hf_config.get("max_position_embeddings")
    if wanted is None:
        if trained is None:
            raise UserError(f"{name}: its config.json names no longest context; set context=TOKENS")
        return int(trained)
    if learned is not None and wanted > learned:
        raise UserError(
            f"{name}: has embeddings of {learned} positions only; set context={learned} or less"
        )
    return wanted
