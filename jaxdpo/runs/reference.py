"""The model whose log-probs are the reference of a run, and their cache."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.kto_pairs import Examples
from jaxdpo.devices.sharding import agreed
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.digest import weights_digest
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.planned_pairs import PlannedPairs
from jaxdpo.scoring.reference import (
    ReferenceCache,
    Scores,
    cache_key,
    compute_and_store,
    load_cached,
)
from jaxdpo.scoring.score import make_score_step


@dataclass(frozen=True)
class Reference:
    """A reference model that scores pairs once and keeps the log-probs for all runs.

    Attributes:
      config: The run's configuration.
      model: The model.
      digest: Digest of its weights.
      mesh: The mesh.
      reporter: Where progress is shown.
    """

    config: RunConfig
    model: Policy
    digest: str
    mesh: Mesh
    reporter: Reporter

    def scored(self, pairs: PlannedPairs, split: Examples, compute: Compute) -> PlannedPairs:
        """Returns the pairs with their reference log-probs, cached ones or computed and stored.

        Args:
          pairs: The pairs, planned in microbatches of the scoring shape.
          split: The same pairs, for their fingerprint.
          compute: How the model is computed.
        """
        loss, model = self.config.loss, self.model
        key = cache_key(
            self.digest,
            split.fingerprint,
            compute.dtype.name,
            model.config.model_dump_json(),
            loss.ld_alpha,
        )
        cache = ReferenceCache(self.config.data.cache_folder() / "reference", key, len(split))
        logps = load_cached(cache)
        # Processes may see different disks: either all of them read, or all of them score.
        if not agreed(logps is not None):
            logps = self._computed(cache, pairs, compute)
        return replace(pairs, columns=pairs.columns._replace(reference=logps))

    def _computed(self, cache: ReferenceCache, pairs: PlannedPairs, compute: Compute) -> np.ndarray:
        loss, packer = self.config.loss, pairs.packer
        # Parts of a scoring that was cut off are of one packing, and only such are continued.
        packing = hashlib.sha256(f"{packer.config} {pairs.shape}".encode()).hexdigest()
        # The same arguments as for evaluation, so that they share a compile.
        step = make_score_step(
            self.model.config, compute, self.mesh, loss.ld_alpha, loss.use_weighting
        )

        def score_from(first: int) -> Scores:
            scores = score_pairs(step, self.model.params, self.model.lora, pairs, self.mesh, first)
            return ((indices, np.asarray(found.logps)) for indices, found in scores)

        with self.reporter.counting("reference log-probs", cache.count) as counted:
            return compute_and_store(cache, packing, lambda first: counted(score_from(first)))


def open_reference(
    config: RunConfig, policy: Policy, digest: str, mesh: Mesh, reporter: Reporter
) -> Reference:
    """Opens the model at `reference.path`, or takes the one that training starts from.

    Args:
      config: The run.
      policy: The model that training starts from.
      digest: Digest of its weights.
      mesh: The mesh.
      reporter: Where progress is shown.

    Raises:
      UserError: If the model at `reference.path` does not read the same token ids as the policy.
    """
    path = config.reference.path
    if path is None:
        return Reference(config, policy, digest, mesh, reporter)
    context = config.data.max_length
    # An adapter folder, or a merged one; the step that scores it is compiled without adapters.
    # Its own tokenizer is not used: it scores the ids that the policy's has made.
    other = load_policy(path, config.model.param_dtype, mesh, context=context).merged()
    if other.chat.tokenizer.get_vocab() != policy.chat.tokenizer.get_vocab():
        raise UserError(
            f"reference.path {path}: its vocabulary is not that of {policy.source}, so it cannot "
            "score the same tokens; use a model with the same tokenizer"
        )
    return Reference(config, other, weights_digest(other.params), mesh, reporter)
