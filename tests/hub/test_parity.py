"""Loaded models against the torch implementation in transformers, on the same folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.hub.families import config_from_hf, family_of
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.read import load_params
from jaxdpo.hub.write import tensor_arrays, tensor_specs
from jaxdpo.losses.against_reference import sigmoid_loss
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import head_weight, logits
from jaxdpo.sampling import SamplingConfig, generate
from jaxdpo.scoring.logprobs import Head, token_scores
from jaxdpo.scoring.score import score_completions
from tests.hub.conftest import EVERYTHING, REPRESENTATIVES, make_torch_model, whole_sequences
from tests.tiny import hidden_states

# Longer than every window and every original context.
LENGTH = 40
DENSE = Compute(jnp.float32, attention="dense", remat="none")
run = jax.jit(hidden_states, static_argnums=(0, 4))


def load(model, dtype=jnp.float32):
    config = config_from_hf(read_config(model.folder), context=LENGTH)
    return config, load_params(model.folder, config, dtype)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 64, (2, LENGTH)).astype(np.int32)


def test_logits(each_model, tokens):
    config, params = load(each_model)
    ours = logits(config, params, run(config, params, None, whole_sequences(tokens), DENSE))
    with torch.no_grad():
        theirs = each_model.torch_model(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())


# torch's experts in bf16 want widths that are multiples of eight.
IN_BF16 = [
    "qwen3-moe-windows" if name in ("qwen3-moe", "glm4-moe", "qwen2-moe") else name
    for name in REPRESENTATIVES
]


@pytest.mark.parametrize("name", IN_BF16 if EVERYTHING else ["llama"])
def test_logits_in_bf16(name, tokens, tmp_path):
    """The logits are as near to torch's bf16 as torch's bf16 is to torch's fp32."""
    model = make_torch_model(name, tmp_path)
    config, params = load(model, jnp.bfloat16)
    compute = Compute(jnp.bfloat16, attention="dense", remat="none")
    ours = logits(config, params, run(config, params, None, whole_sequences(tokens), compute))
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        exact = model.torch_model(ids).logits.numpy()
        kind = type(model.torch_model)
        rounded_model = kind.from_pretrained(
            model.folder, dtype=torch.bfloat16, attn_implementation="eager"
        )
        rounded = rounded_model(ids).logits.float().numpy()
    error = np.abs(rounded - exact).mean()
    print(f"{name}: {np.abs(np.asarray(ours) - exact).mean() / error:.2f} of torch's error")
    assert np.abs(np.asarray(ours) - exact).mean() < 1.2 * error
    assert np.abs(np.asarray(ours) - rounded).mean() < 1.5 * error


def in_hub_names(gradients: dict[str, np.ndarray], model_type: str) -> dict[str, np.ndarray]:
    """Gradients by the names that files have: torch fuses experts that files keep apart."""
    mixtral = model_type == "mixtral"
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    result = {}
    for name, values in gradients.items():
        if mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        experts, _, fused = name.partition(".experts.")
        if not fused:
            result[name] = values
            continue
        kinds = names[:2] if fused == "gate_up_proj" else names[2:]
        for expert, both in enumerate(values):
            for kind, each in zip(kinds, np.split(both, len(kinds)), strict=True):
                result[f"{experts}.experts.{expert}.{kind}.weight"] = each
    return result


@pytest.fixture(scope="module")
def pairs() -> list[TokenizedPair]:
    """Two pairs for one row and a longer one, that fills its own."""
    rng = np.random.default_rng(1)
    lengths = [(9, 5, 8), (1, 2, 1), (20, 11, 3)]
    return [
        TokenizedPair(*(rng.integers(0, 64, n).astype(np.int32) for n in triple))
        for triple in lengths
    ]


@pytest.fixture(scope="module")
def batch(pairs) -> PackedBatch:
    """The pairs in rows, prompts shared."""
    shape = BatchShape(rows=2, row_length=40, pairs=2, scores=20, tiles=1)
    return pack_batch(pairs, [[0, 1], [2]], shape)


def torch_logps(model, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    """Returns the log-prob of each token of a completion, in a sequence by itself."""
    ids = torch.tensor(np.concatenate([prompt, completion])[None]).long()
    logps = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return logps.gather(-1, torch.tensor(completion).long()[:, None])[:, 0]


REFERENCE, BETA = np.array([[-60.0, -70.0], [-9.0, -4.0], [-80.0, -30.0]], np.float32), 0.1


def test_gradients_of_the_dpo_loss(each_family, pairs, batch):
    """Packed here, pair by pair there."""
    config, params = load(each_family)

    def loss(params):
        policy = score_completions(config, params, None, batch, DENSE).completions.logps
        ratios = policy - jnp.asarray(REFERENCE)[batch.pair_index]
        losses = sigmoid_loss(ratios[..., 0], ratios[..., 1], beta=BETA)
        return jnp.sum(jnp.where(batch.pair_index >= 0, losses, 0.0)) / len(pairs)

    model = each_family.torch_model
    model.zero_grad()
    losses = []
    for pair, reference in zip(pairs, REFERENCE, strict=True):
        chosen, rejected = (
            torch_logps(model, pair.prompt_ids, ids).sum()
            for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        margin = chosen - rejected - float(reference[0] - reference[1])
        losses.append(-torch.nn.functional.logsigmoid(BETA * margin))
    torch.stack(losses).mean().backward()
    expected = in_hub_names(
        {name: tensor.grad.numpy() for name, tensor in model.named_parameters()},
        read_config(each_family.folder)["model_type"],
    )

    gradient = jax.jit(jax.grad(loss))(params)
    # What transformers does not train has no gradient here.
    buffers = {name: tensor.numpy() * 0 for name, tensor in model.named_buffers()}
    expected |= {name: zeros for name, zeros in buffers.items() if "correction" in name}
    rows = family_of(read_config(each_family.folder)).rows(config)
    ours = dict(zip(tensor_specs(rows, params), tensor_arrays(rows, gradient), strict=True))
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            ours[name], values, rtol=0, atol=1e-4 * np.abs(values).max(), err_msg=name
        )


def test_packed_prefix_shared_rows_equal_torch_on_separate_sequences(each_family, pairs, batch):
    config, params = load(each_family)
    expected = np.zeros((2, 20), np.float32)
    for row, members in enumerate([[0, 1], [2]]):
        scored = 0
        for prompt, *completions in (pairs[member][:3] for member in members):
            for completion in completions:
                with torch.no_grad():
                    logps = torch_logps(each_family.torch_model, prompt, completion)
                expected[row, scored : scored + len(completion)] = logps
                scored += len(completion)
    scored = batch.score_pair > 0
    for attention in ("dense", "tiles"):
        hidden = run(config, params, None, batch, Compute(jnp.float32, attention, "none"))
        weight, head = head_weight(config, params), Head(config.logit_scale, config.logit_softcap)
        ours = token_scores(hidden, weight, batch.score_index, batch.score_target, head).logps
        np.testing.assert_allclose(np.asarray(ours)[scored], expected[scored], rtol=1e-5, atol=2e-5)


def test_greedy_generation_equals_torch(each_family):
    """Twenty prompts of four lengths, through the cache of keys and values, here and there."""
    config, params = load(each_family)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(1, 64, (5, length)) for length in (3, 6, 8, 11)]
    sampling = SamplingConfig(max_new_tokens=12, batch_size=20)
    each = [prompt.tolist() for group in prompts for prompt in group]
    ours = [new.ids for new in generate(config, params, None, each, sampling, [], DENSE)]
    theirs = []
    # What a call leaves open comes from there: some configs name an end token.
    each_family.torch_model.generation_config = GenerationConfig(pad_token_id=0)
    options = GenerationConfig(max_new_tokens=12, do_sample=False)
    for group in prompts:
        ids = torch.tensor(group)
        found = each_family.torch_model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=options
        )
        theirs += found[:, group.shape[1] :].tolist()
    assert ours == theirs
