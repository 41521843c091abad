"""One step and twenty against torch: a plain DPO in PyTorch, and TRL's own DPOTrainer.

`-m slow` follows TRL with every loss of `LOSSES` on every family.
"""

import copy
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.hub.write import tensor_arrays, tensor_specs
from jaxdpo.losses import LossConfig
from jaxdpo.losses.against_reference import sigmoid_loss
from jaxdpo.scoring.score import score_completions
from tests.folders import write_model, write_pairs
from tests.torch_reference import (
    BATCH,
    BETA,
    COMPUTE,
    STEPS,
    TEMPLATE,
    TRL_ARGUMENTS,
    our_curve,
    plan_of,
    weights,
)

LOSSES = {
    "sigmoid": LossConfig(beta=BETA),
    "ipo": LossConfig(type="ipo", beta=BETA),
    "hinge": LossConfig(type="hinge", beta=BETA),
    "apo_zero": LossConfig(type="apo_zero", beta=BETA),
    "sigmoid+sft": LossConfig(type=["sigmoid", "sft"], weights=[1.0, 0.5], beta=BETA),
}
# Which loss it is changes nothing in the model, and the family nothing in the loss, so one of both
# stands for the grid by default.
FAMILIES = ("llama", "qwen2")
CASES = [
    pytest.param(
        family,
        name,
        marks=[]
        if (family, name) in (("llama", "sigmoid"), ("qwen2", "ipo"))
        else pytest.mark.slow,
    )
    for family in FAMILIES
    for name in LOSSES
]


def tiny_qwen2():
    torch.manual_seed(1)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=405,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            bos_token_id=0,
            eos_token_id=2,
        )
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(tmp_path_factory, request):
    model = tiny_qwen2() if request.param == "qwen2" else None
    return write_model(tmp_path_factory.mktemp("model"), model=model)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", BATCH * STEPS, test=0)


@pytest.fixture(scope="module")
def pairs(folder, pairs_file, tmp_path_factory):
    chat = Chat(AutoTokenizer.from_pretrained(folder), TEMPLATE)
    cache = tmp_path_factory.mktemp("cache")
    loaded = load_pairs(DataConfig(path=str(pairs_file), cache_dir=str(cache)), chat)
    return loaded.splits["TRAIN"]


@pytest.fixture(scope="module")
def ours(folder):
    return weights(folder)


def torch_logps(model, prompt, completion) -> torch.Tensor:
    """The completion's log-prob in one unpacked, unpadded forward pass."""
    ids = torch.tensor(np.concatenate([prompt, completion])[None].astype(np.int64))
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


def torch_step(model, reference, pairs, indices):
    """Loss and completion log-probs of a step, by the paper's formula, pair by pair."""
    losses, logps = [], []
    for index in indices:
        pair = pairs[int(index)]
        chosen, rejected = (
            torch_logps(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        logits = chosen - rejected - float(reference[index, 0] - reference[index, 1])
        losses.append(-torch.nn.functional.logsigmoid(BETA * logits))
        logps.append([chosen.item(), rejected.item()])
    return torch.stack(losses).mean(), np.array(logps)


def test_one_step_equals_plain_torch(folder, pairs, ours):
    config, params, rows = ours
    plan = plan_of(pairs)
    rng = np.random.default_rng(0)
    reference = rng.normal(-60, 5, (len(pairs), 2)).astype(np.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    indices = plan.pairs(0)
    loss, logps = torch_step(model, reference, pairs, indices)
    loss.backward()

    shape = plan.shape(layout="plain")
    batches = [pack_batch(pairs, m, shape) for m in plan.microbatches(0)]

    @jax.jit
    def our_loss(params):
        total, found = jnp.zeros(()), []
        for batch in batches:
            policy = score_completions(config, params, None, batch, COMPUTE).completions.logps
            base = jnp.asarray(reference)[batch.pair_index]
            ratios = policy - base
            losses = sigmoid_loss(ratios[..., 0], ratios[..., 1], beta=BETA)
            total += jnp.sum(jnp.where(batch.pair_index >= 0, losses, 0.0)) / BATCH
            found.append(policy)
        return total, found

    (our_total, found), gradients = jax.value_and_grad(our_loss, has_aux=True)(params)
    np.testing.assert_allclose(float(our_total), loss.item(), rtol=1e-4)
    place = {int(index): row for row, index in enumerate(indices)}
    for batch, policy in zip(batches, found, strict=True):
        for r, p in zip(*np.nonzero(batch.pair_index >= 0), strict=True):
            expected = logps[place[int(batch.pair_index[r, p])]]
            np.testing.assert_allclose(policy[r, p], expected, rtol=1e-4)

    theirs = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        theirs[name] = parameter.grad.numpy()
    names = tensor_specs(rows, gradients)
    assert names.keys() == theirs.keys()
    for name, gradient in zip(names, tensor_arrays(rows, gradients), strict=True):
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(
            gradient, theirs[name], rtol=1e-4, atol=1e-4 * scale, err_msg=name
        )


def trl_curve(loss, folder, pairs_file, order, tmp_path):
    """Logs of TRL's DPOTrainer over the pairs in the given order, the rows it made of them, and
    the first step's gradients, clipped."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]  # lazy

    gradients = {}

    class FirstGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            for name, tensor in model.named_parameters():
                gradients.setdefault(name, tensor.grad.numpy().copy())

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    lines = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    dataset = Dataset.from_list(
        [
            {
                "prompt": lines[index]["messages"][:-1],
                "chosen": lines[index]["messages"][-1:],
                "rejected": [lines[index]["rejected_message"]],
            }
            for index in order
        ]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        beta=loss.beta,
        loss_type=list(loss.type),
        loss_weights=None if loss.weights is None else list(loss.weights),
        **TRL_ARGUMENTS,
    )
    trainer = InOrder(
        model=model,
        ref_model=copy.deepcopy(model),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[FirstGradients()],
    )
    rows: list[Any] = list(trainer.train_dataset)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "rewards/margins" in log]
    return logs, rows, gradients


@pytest.mark.parametrize(("folder", "name"), CASES, indirect=["folder"])
def test_twenty_steps_follow_trl(name, folder, pairs_file, pairs, ours, tmp_path):
    loss = LOSSES[name]
    plan = plan_of(pairs)
    order = np.concatenate([plan.pairs(step) for step in range(STEPS)])
    # The reader keeps the file's order, so pair i is line i.
    assert pairs.source(3).endswith(":4")
    theirs, rows, their_gradients = trl_curve(loss, folder, pairs_file, order, tmp_path)
    for row, index in zip(rows, order, strict=True):
        for field in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert list(row[field]) == getattr(pairs[int(index)], field).tolist()
    ours_by_step, gradients = our_curve(loss, pairs, ours)
    assert len(theirs) == len(ours_by_step) == STEPS
    np.testing.assert_allclose(ours_by_step[0]["grad_norm"], theirs[0]["grad_norm"], rtol=1e-4)
    assert gradients.keys() == their_gradients.keys()
    for parameter, expected in their_gradients.items():
        allowed = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(
            gradients[parameter], expected, rtol=0, atol=allowed, err_msg=parameter
        )
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-3)
    for step, (our, their) in enumerate(zip(ours_by_step, theirs, strict=True)):
        close(our["loss"], their["loss"], err_msg=f"loss at step {step}")
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            close(our[name], their[name], err_msg=f"{name} at step {step}")
        if step:
            # At step 0 all rewards tie, which TRL counts as wrong and we as half right.
            close(our["rewards/accuracies"], their["rewards/accuracies"])
    # The run went somewhere: agreement on standing still would show nothing.
    assert ours_by_step[-1]["rewards/margins"] > 0.1
