"""New adapters of each kind: started, trained and written as `peft` does it in torch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM

from jaxdpo.hub.adapter_write import AdapterBase, save_adapter
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.read import load_params
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.training.optimizer import make_optimizer
from jaxdpo.training.optimizer_config import OptimizerConfig
from tests.hub.conftest import make_torch_model, whole_sequences
from tests.tiny import hidden_states

TOKENS = np.array([[5, 17, 9, 20, 31, 8, 7, 30, 44, 61, 2, 13]], np.int32)
RATE, STEPS = 0.01, 3
# An epsilon of the gradients' size: with a smaller one AdamW's first steps are signs, which the
# rounding of a gradient near zero decides.
EPSILON = 1e-3

KINDS: dict[str, tuple[dict[str, Any], float | None]] = {
    "plain": ({}, None),
    "rsLoRA": ({"use_rslora": True}, None),
    "DoRA": ({"use_dora": True}, None),
    "LoRA+": ({}, 8.0),
    "DoRA, rsLoRA and LoRA+": ({"use_dora": True, "use_rslora": True}, 4.0),
}
# The names under which peft keeps what we call a, b and m.
PARTS = {"a": "lora_A.default.weight", "b": "lora_B.default.weight"}
PARTS |= {"m": "lora_magnitude_vector.default.weight"}


MAPS = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}


def torch_arrays(named: dict[str, Any], lora: Any) -> dict[str, np.ndarray]:
    """Returns peft's tensors, by their names, under our paths, stacked and transposed as ours."""
    found = {}
    for part, linears in lora["layers"].items():
        for name, pair in linears.items():
            for which in pair:
                layers = [
                    named[f"base_model.model.model.layers.{layer}.{MAPS[name]}.{PARTS[which]}"]
                    for layer in range(pair[which].shape[0])
                ]
                # A vector's transpose is the vector.
                arrays = [np.transpose(one.detach().numpy()) for one in layers]
                found[f"{part}/{name}/{which}"] = np.stack(arrays)
    return found


def our_arrays(lora: Any) -> dict[str, np.ndarray]:
    return {
        f"{part}/{name}/{which}": np.asarray(leaf)
        for part, linears in lora["layers"].items()
        for name, pair in linears.items()
        for which, leaf in pair.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-biases-linear-rope", "qwen2"])
def test_first_steps_are_those_of_peft(kind, name, tmp_path):
    fields, ratio = KINDS[kind]
    made = make_torch_model(name, tmp_path / "base")
    hf_config = read_config(made.folder)
    config = config_from_hf(hf_config)
    params = load_params(made.folder, config, jnp.float32)
    lora_config = LoraConfig(rank=4, alpha=6.0, targets=("q", "v", "down"), **fields)
    lora = init_lora(config, lora_config, jax.random.key(0), params)
    save_adapter(
        tmp_path / "adapter", lora, lora_config, AdapterBase(str(made.folder), config, hf_config)
    )
    base = AutoModelForCausalLM.from_pretrained(made.folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)

    # The magnitudes that peft itself would begin with.
    fresh = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(made.folder),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **fields),
    )
    begun = torch_arrays(dict(fresh.named_parameters()), lora)
    for path, array in our_arrays(lora).items():
        if not path.endswith("/a"):
            np.testing.assert_allclose(array, begun[path], rtol=1e-5, atol=1e-7)

    compute = Compute(jnp.float32, attention="dense", remat="none", lora=lora_config)

    def loss(lora: Any) -> jax.Array:
        hidden = hidden_states(config, params, lora, whole_sequences(TOKENS), compute)
        scores = jax.nn.log_softmax(logits(config, params, hidden)[:, :-1])
        return -jnp.take_along_axis(scores, TOKENS[:, 1:, None], axis=-1).mean()

    options = OptimizerConfig(
        learning_rate=RATE, epsilon=EPSILON, max_grad_norm=None, loraplus_lr_ratio=ratio,
        schedule="constant", weight_decay=0.0,
    )  # fmt: skip
    rule = make_optimizer(options, optax.constant_schedule(RATE))
    state = rule.init(lora)
    adamw = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio or 1.0, eps=EPSILON
    )
    ids = torch.tensor(TOKENS).long()
    step = jax.jit(jax.value_and_grad(loss))
    for number in range(STEPS):
        value, gradients = step(lora)
        updates, state = rule.update(gradients, state, lora)
        lora = optax.apply_updates(lora, updates)
        adamw.zero_grad()
        expected = theirs(ids, labels=ids).loss
        expected.backward()
        assert float(value) == pytest.approx(float(expected.detach()), rel=2e-5)
        named = theirs.named_parameters()
        torch_gradients = torch_arrays({name: each.grad for name, each in named}, lora)
        for path, gradient in our_arrays(gradients).items():
            size = np.abs(torch_gradients[path]).max()
            np.testing.assert_allclose(
                gradient, torch_gradients[path], rtol=0, atol=2e-4 * size + 1e-7, err_msg=path
            )
            if number > 0 or not path.endswith("/a"):
                assert size > 1e-4
        adamw.step()
        trained = torch_arrays(dict(theirs.named_parameters()), lora)
        for path, array in our_arrays(lora).items():
            # A five-hundredth of how far one step moves it.
            moved = RATE * (1.0 if path.endswith("/a") else ratio or 1.0)
            np.testing.assert_allclose(
                array, trained[path], rtol=0, atol=2e-3 * moved, err_msg=path
            )
    # Written after training, it is the same model for peft.
    save_adapter(
        tmp_path / "trained", lora, lora_config, AdapterBase(str(made.folder), config, hf_config)
    )
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(made.folder, attn_implementation="eager"),
        str(tmp_path / "trained"),
    )
    with torch.no_grad():
        exported = float(again.eval()(ids, labels=ids).loss)
    assert exported == pytest.approx(float(loss(lora)), rel=2e-5)
    assert exported < float(value)
    assert Path(tmp_path / "trained/adapter_config.json").exists()
