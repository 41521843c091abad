"""KTO from a file of labelled answers to an aligned model, and step by step after TRL's trainer."""

import copy
import json
import random
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdpo.config import load_config
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.errors import UserError
from jaxdpo.losses import LossConfig
from jaxdpo.runs.fit import fit
from tests.folders import sentence, write_model
from tests.tiny import Pairs
from tests.torch_reference import (
    BATCH,
    BETA,
    STEPS,
    TEMPLATE,
    TRL_ARGUMENTS,
    our_curve,
    plan_of,
    weights,
)

LOSS = LossConfig(type="kto", beta=BETA, desirable_weight=1.0, undesirable_weight=1.3)


def say(role, content):
    return {"role": role, "content": content}


def thumbs(count, seed=0, test=0):
    """Labelled answers of random words: those that begin with "yes" were found good."""
    rng = random.Random(seed)
    for index in range(count):
        good = rng.random() < 0.6
        start = "yes" if good else "no"
        asked = say("user", f"{index} {sentence(rng, rng.randint(3, 12))}")
        answer = say("assistant", f"{start} {sentence(rng, rng.randint(2, 9))}")
        split = "TEST" if index < test else "TRAIN"
        yield {"messages": [asked, answer], "label": good, "split": split}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write(folder / "thumbs.jsonl", thumbs(40, test=10))
    return folder


def configured(inputs, folder, *overrides):
    return load_config(
        None,
        [
            f"model.path={inputs / 'model'}",
            f"data.path={inputs / 'thumbs.jsonl'}",
            f"data.cache_dir={inputs / 'cache'}",
            f"training.folder={folder}",
            "training.max_steps=6",
            "training.epochs=2",
            "training.completions=1",
            "training.evaluate_every=6",
            "checkpoint.every=3",
            "batch.size=8",
            "batch.row_length=128",
            "optimizer.learning_rate=3e-3",
            "mesh.data=1",
            "mesh.fsdp=8",
            *overrides,
        ],
    )


def test_labelled_answers_train_and_a_run_that_was_cut_off_continues(inputs, tmp_path):
    config = configured(inputs, tmp_path / "run", "loss.type=kto", "loss.undesirable_weight=1.5")
    result = fit(config)
    first, last = result.history[1], result.history[-2]
    assert (first["split"], last["split"]) == ("TRAIN", "TRAIN")
    # At the reference every σ is a half, and each answer's loss half its weight.
    good, bad = first["num_chosen"], first["num_rejected"]
    assert good + bad == first["num_pairs"] == 8
    np.testing.assert_allclose(first["loss"], (good + 1.5 * bad) / 16, rtol=1e-5)
    names = ("rewards/chosen", "rewards/rejected", "kl")
    np.testing.assert_allclose([first[name] for name in names], 0, atol=1e-5)
    before, after = result.summary["test"]["before"], result.summary["test"]["after"]
    assert after["loss"] < before["loss"] - 0.02
    np.testing.assert_allclose(
        after["rewards/margins"], after["rewards/chosen"] - after["rewards/rejected"], rtol=1e-6
    )
    assert after["rewards/margins"] > 0.05 and after["rewards/accuracies"] > 0.7
    assert after["kl"] >= 0
    # Cut off after step 3, it ends as it ended.
    trained = jax.device_get(result.policy.params)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000006")
    (tmp_path / "run" / "summary.json").unlink()
    again = fit(config)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.policy.params), trained)
    assert again.summary["test"] == result.summary["test"]


@pytest.mark.slow
def test_microbatches_and_reference_change_nothing(inputs, tmp_path):
    settings = {
        # One row a microbatch, so that there are several.
        "many microbatches": ["mesh.fsdp=1", "mesh.tensor=8"],
        "one": ["batch.row_length=1024"],
        "in the step": ["reference.kind=frozen"],
    }
    losses = {}
    for name, overrides in settings.items():
        config = configured(inputs, tmp_path / name, "loss.type=kto", *overrides)
        history = fit(config).history
        names = ("loss", "kl", "rewards/margins", "grad_norm")
        losses[name] = [[r[n] for n in names] for r in history if r["split"] == "TRAIN"]
        np.testing.assert_allclose(losses[name], losses["many microbatches"], rtol=1e-3, atol=1e-4)


def test_other_losses_refuse_labelled_answers(inputs, tmp_path):
    with pytest.raises(UserError, match=r"thumbs.jsonl:\d+: one answer with a label, but sigmoid"):
        fit(configured(inputs, tmp_path / "run"))


def trl_run(folder, records, tmp_path):
    """Logs of TRL's KTOTrainer over the records in their order, and the rows it made of them."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer  # pyright: ignore[reportPrivateImportUsage]  # lazy

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    columns = [
        {"prompt": r["messages"][:1], "completion": r["messages"][1:], "label": r["label"]}
        for r in records
    ]
    arguments = KTOConfig(
        output_dir=str(tmp_path / "trl"),
        beta=LOSS.beta,
        desirable_weight=LOSS.desirable_weight,
        undesirable_weight=LOSS.undesirable_weight,
        **TRL_ARGUMENTS,
    )
    trainer = KTOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )
    rows: list[Any] = list(trainer.train_dataset)
    trainer.train()
    return [log for log in trainer.state.log_history if "kl" in log], rows


def test_twenty_steps_follow_trl(inputs, tmp_path):
    folder = inputs / "model"
    records = list(thumbs(BATCH * STEPS, seed=3))
    theirs, rows = trl_run(folder, records, tmp_path)
    # The same tokens, TRL's mismatched answers among them, where our plan puts them.
    names = ("prompt_ids", "completion_ids", "KL_completion_ids")
    ids = [TokenizedPair(*(np.array(row[name], np.int32) for name in names)) for row in rows]
    plan = plan_of(Pairs(ids))
    order = np.concatenate([plan.pairs(step) for step in range(STEPS)])
    placed: list = [None] * len(ids)
    labels = np.zeros(len(ids), np.float32)
    for row, index in enumerate(order):
        placed[index], labels[index] = ids[row], rows[row]["label"]
    ours, _ = our_curve(LOSS, Pairs(placed), weights(folder), labels)
    np.testing.assert_allclose(ours[0]["grad_norm"], theirs[0]["grad_norm"], rtol=1e-4)
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        for name in ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert (name in our) == (name in their)
            if name in our:
                np.testing.assert_allclose(our[name], their[name], atol=1e-3, err_msg=f"{step}")
    assert max(our["kl"] for our in ours) > 1e-3
    assert jnp.mean(jnp.array([our["loss"] for our in ours[-5:]])) < ours[0]["loss"]
