"""Twenty steps of training, ours and their settings, as TRL's trainers take them in torch."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxdpo.data.packing.plan import (
    BatchConfig,
    Packer,
    choose_row_length,
    make_train_plan,
    scoring_shape,
)
from jaxdpo.hub.families import config_from_hf, family_of
from jaxdpo.hub.read import load_params
from jaxdpo.hub.write import tensor_arrays, tensor_specs
from jaxdpo.model.compute import Compute
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs
from jaxdpo.scoring.score import make_score_step
from jaxdpo.training.loop import run_steps
from jaxdpo.training.metrics import LaggedMetrics
from jaxdpo.training.objective import Objective
from jaxdpo.training.optimizer import Optimizer
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.state import init_state
from jaxdpo.training.step import make_train_step
from tests.folders import CHATML
from tests.tiny import mesh_of

BETA, BATCH, STEPS, RATE = 0.3, 4, 20, 2e-4
# TRL trains on what the template writes after the end token; so that both see the same tokens,
# this template writes nothing there.
TEMPLATE = CHATML.replace("<|im_end|>\\n", "<|im_end|>")
COMPUTE = Compute(jnp.float32, "dense", "full")


# What every trainer of TRL is given.
TRL_ARGUMENTS = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": RATE,
    "per_device_train_batch_size": BATCH,
    "max_steps": STEPS,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


class Accelerator(SimpleNamespace):
    """The part of accelerate that TRL's trainers ask for, for one process."""

    device = torch.device("cpu")

    @staticmethod
    def gather(tensor):
        return tensor

    gather_for_metrics = gather


def weights(folder):
    """Architecture, parameters, and how they are called in the folder."""
    hf_config = json.loads((folder / "config.json").read_text())
    config = config_from_hf(hf_config)
    return config, load_params(folder, config, jnp.float32), family_of(hf_config).rows(config)


def plan_of(pairs):
    batch = BatchConfig(size=BATCH)
    packer = Packer(pairs.lengths, batch, 1, choose_row_length(pairs.lengths, batch, 1))
    return make_train_plan(packer, 7, 1.0, STEPS)


def our_curve(loss, pairs, ours, labels=None):
    """Our metrics by step, and the first step's gradients, clipped, by Hugging Face's names."""
    config, params, rows = ours
    mesh = mesh_of(1, 1, 1)
    plan = plan_of(pairs)
    optimizer_config = OptimizerConfig(learning_rate=RATE)
    with jax.set_mesh(mesh):
        optimizer = Optimizer(optimizer_config, STEPS)
        reference = np.zeros((len(pairs), 2), np.float32)
        score = make_score_step(config, COMPUTE, mesh)
        shape = plan.shape(layout="plain")
        scoring = replace(scoring_shape([plan.packer], layout="plain"), microbatches=1)
        to_score = PlannedPairs(pairs, plan.packer, scoring, PairColumns())
        for indices, scores in score_pairs(score, params, None, to_score, mesh):
            reference[indices] = scores.logps
        state = init_state(jax.tree.map(jnp.copy, params), optimizer, mesh)
        objective = Objective(config, COMPUTE, loss, BATCH, seed=0)
        step = make_train_step([objective], [optimizer], mesh, state)
        columns = PairColumns(reference, labels=labels)
        data = PlannedPairs(pairs, plan.packer, shape, columns)
        lagged, ready, gradients = LaggedMetrics(), [], {}
        for number, after, metrics in run_steps(step, state, None, data, plan, mesh, 0):
            if number == 1:
                # Adam's first mean of gradients is its share of the first one.
                means = optax.tree_utils.tree_get(after.optimizer, "mu")
                first = jax.tree.map(lambda mean: mean / (1 - optimizer_config.beta1), means)
                names = tensor_specs(rows, first)
                gradients = dict(zip(names, tensor_arrays(rows, first), strict=True))
            ready.append(lagged.push(number, metrics))
        ready.append(lagged.flush())
    return [metrics[1] for metrics in ready if metrics is not None], gradients
