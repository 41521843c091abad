"""Sampling, batched and cached, against the full forward pass of one sequence at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxdpo.data.packing.layout import empty_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.read import load_params
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import init_params, logits
from jaxdpo.model.lora import LoraConfig, init_lora, merge_lora
from jaxdpo.sampling import (
    Completion,
    Model,
    SamplingConfig,
    generate,
    generate_each,
    numbered,
    rows,
)
from tests.sampling.frequencies import assert_frequencies
from tests.tiny import compilations, hidden_states

CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=32,
    num_layers=2,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8),
    mlp=MLPConfig(intermediate_size=48),
)
COMPUTE = Compute(jnp.float32, attention="dense", remat="none")
NO_STOP = [CONFIG.vocab_size]
PROMPTS = [[5, 9, 2, 7, 7, 1], [3], [8, 8, 4], [11, 6, 5, 4, 3, 2, 1, 12, 13], [20, 1]]


@pytest.fixture(scope="module")
def params():
    """Random weights, large enough that the model prefers some tokens clearly."""
    weights = init_params(CONFIG, jax.random.key(0), jnp.float32)
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, weights)


@jax.jit
def causal_logits(params, tokens_1T):
    """Logits after every token of one sequence, from one pass without a cache."""
    length = tokens_1T.shape[1]
    batch = empty_batch(BatchShape(rows=1, row_length=length), rows=1)._replace(
        tokens=tokens_1T,
        positions=jnp.arange(length)[None],
        pair_ids=jnp.ones((1, length), jnp.int32),
    )
    return logits(CONFIG, params, hidden_states(CONFIG, params, None, batch, COMPUTE))[0]


def full_forward_logits(params, tokens):
    """Logits of the token after `tokens`; what follows them in the row cannot be seen."""
    padded = np.zeros((1, 80), np.int32)
    padded[0, : len(tokens)] = tokens
    return causal_logits(params, padded)[len(tokens) - 1]


def full_forward_greedy(params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(full_forward_logits(params, tokens).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_greedy_equals_the_full_forward_pass(params, batch_size):
    greedy = SamplingConfig(max_new_tokens=12, batch_size=batch_size)
    completions = generate(CONFIG, params, None, PROMPTS, greedy, NO_STOP, COMPUTE)
    expected = [full_forward_greedy(params, prompt, 12) for prompt in PROMPTS]
    assert completions == [Completion(ids, finished=False) for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 1


def test_greedy_equals_torch(tmp_path):
    torch.manual_seed(0)
    theirs: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            eos_token_id=None,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    config = config_from_hf(read_config(tmp_path))
    ours = load_params(tmp_path, config, jnp.float32)
    prompts = np.random.default_rng(1).integers(0, 64, (20, 9))
    # Prompts of 1 to 9 tokens; torch gets each alone, so that it pads nothing.
    ragged = [prompt[: 1 + i % 9].tolist() for i, prompt in enumerate(prompts)]
    stop = 17
    greedy = SamplingConfig(max_new_tokens=20)
    completions = generate(config, ours, None, ragged, greedy, [stop], COMPUTE)
    for prompt, completion in zip(ragged, completions, strict=True):
        sequence = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=stop,
            pad_token_id=0,
        )[0].tolist()
        expected = sequence[len(prompt) :]
        assert completion.ids == [token for token in expected if token != stop]
        assert completion.finished == (stop in expected)
    assert {completion.finished for completion in completions} == {True, False}


def test_prompts_longer_than_one_length_step(params):
    prompt = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 70).tolist()
    greedy = SamplingConfig(max_new_tokens=4, batch_size=2)
    completions = generate(CONFIG, params, None, [prompt, [3]], greedy, NO_STOP, COMPUTE)
    assert [c.ids for c in completions] == [
        full_forward_greedy(params, prompt, 4),
        full_forward_greedy(params, [3], 4),
    ]


def test_adapters_sample_as_the_merged_model(params):
    config = LoraConfig(rank=4, alpha=8.0)
    lora = jax.tree.map(lambda leaf: leaf + 0.1, init_lora(CONFIG, config, jax.random.key(1)))
    with_lora = Compute(jnp.float32, attention="dense", remat="none", lora=config)
    greedy = SamplingConfig(max_new_tokens=8)
    adapted = generate(CONFIG, params, lora, PROMPTS, greedy, NO_STOP, with_lora)
    merged = merge_lora(params, lora, config.scale)
    assert adapted == generate(CONFIG, merged, None, PROMPTS, greedy, NO_STOP, COMPUTE)
    assert adapted != generate(CONFIG, params, None, PROMPTS, greedy, NO_STOP, COMPUTE)


def test_a_stop_token_ends_a_completion_and_is_left_out(params):
    greedy = SamplingConfig(max_new_tokens=12)
    free = [full_forward_greedy(params, prompt, 12) for prompt in PROMPTS]
    stops = [free[0][3], free[1][0]]
    completions = generate(CONFIG, params, None, PROMPTS, greedy, stops, COMPUTE)
    for ids, completion in zip(free, completions, strict=True):
        places = [i for i, token in enumerate(ids) if token in stops]
        at = places[0] if places else len(ids)
        stop = ids[at] if places else None
        assert completion == Completion(ids[:at], finished=bool(places), stop=stop)
    assert completions[1] == Completion([], finished=True, stop=free[1][0])


def draw_each(params, requests, **fields):
    drawn = SamplingConfig(**{"max_new_tokens": 10, "temperature": 1.0, "seed": 3} | fields)
    return dict(generate_each(Model(CONFIG, params, None, NO_STOP, COMPUTE), requests, drawn))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_that_are_filled_again_answer_as_if_alone(params, batch_size):
    """Forty prompts in a few rows: more tokens than the ring holds and than one row of prompts."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 24, length).tolist() for length in rng.integers(1, 40, 40)]
    stops = [4, 9]
    greedy = SamplingConfig(max_new_tokens=20, batch_size=batch_size)
    completions = generate(CONFIG, params, None, prompts, greedy, stops, COMPUTE)
    for prompt, completion in zip(prompts, completions, strict=True):
        free = full_forward_greedy(params, prompt, 20)
        end = next((i for i, token in enumerate(free) if token in stops), None)
        stop = None if end is None else free[end]
        assert completion == Completion(free[:end], finished=end is not None, stop=stop)
    assert len({len(completion.ids) for completion in completions}) > 5


def test_draws_depend_on_seed_prompt_and_sample_alone(params):
    requests = numbered(PROMPTS + PROMPTS)
    assert [request.sample for request in requests] == [0] * 5 + [1] * 5
    alone = draw_each(params, requests, batch_size=1)
    assert draw_each(params, requests, batch_size=3) == alone
    assert draw_each(params, requests, batch_size=16) == alone
    backwards = draw_each(params, requests[::-1], batch_size=3)
    assert [backwards[9 - number] for number in range(10)] == [alone[n] for n in range(10)]
    assert draw_each(params, requests[7:8])[0] == alone[7]
    assert alone[0] != alone[5]
    assert draw_each(params, requests, seed=4)[0] != alone[0]


def test_a_stop_text_ends_a_completion_where_it_is_written(params):
    """Texts of two tokens each, looked for in what was drawn; tokens of a letter each."""

    def letters(ids):
        return "".join(chr(ord("a") + token) for token in ids)

    free = [letters(c.ids) for c in draw_each(params, numbered(PROMPTS * 3)).values()]
    stops = (free[0][3:5], free[1][:1], "zz")
    assert len({text.find(stops[0]) for text in free}) > 1
    model = Model(CONFIG, params, None, NO_STOP, COMPUTE, letters)
    for batch_size in (2, 16):
        config = SamplingConfig(
            max_new_tokens=10, temperature=1.0, seed=3, batch_size=batch_size, stop=stops
        )
        done = dict(generate_each(model, numbered(PROMPTS * 3), config))
        for number, text in enumerate(free):
            ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
            assert letters(done[number].ids) == text[: min(ends, default=None)]
            assert done[number].finished == bool(ends)


def test_other_seeds_and_prompts_of_the_same_padded_length_compile_nothing(params):
    def draw(prompts, seed):
        drawn = SamplingConfig(max_new_tokens=3, temperature=0.7, seed=seed, batch_size=4)
        generate(CONFIG, params, None, prompts, drawn, NO_STOP, COMPUTE)

    draw(PROMPTS, 0)
    compiled = compilations(rows.advance_rows), compilations(rows.begin_rows)
    draw([*PROMPTS[::-1], [1] * 30], 1)
    draw(PROMPTS[:1], 2)
    assert (compilations(rows.advance_rows), compilations(rows.begin_rows)) == compiled


@pytest.mark.parametrize("device", [None, 0, 3])
def test_each_program_is_compiled_once(params, device):
    """Also where the weights are bound to a device, as loaded ones are, and the state is new."""
    weights = params if device is None else jax.device_put(params, jax.devices()[device])
    programs: list[Any] = [rows.begin_rows, rows.advance_rows]
    for program in programs:
        program.clear_cache()
    few = SamplingConfig(max_new_tokens=3, batch_size=2)
    for _ in range(2):
        generate(CONFIG, weights, None, PROMPTS, few, NO_STOP, COMPUTE)
    assert [compilations(program) for program in programs] == [1, 1]


def test_sampled_tokens_have_the_models_frequencies(params):
    drawn = SamplingConfig(max_new_tokens=1, temperature=0.8, batch_size=500)
    completions = generate(CONFIG, params, None, [PROMPTS[0]] * 4000, drawn, NO_STOP, COMPUTE)
    counts = np.bincount([c.ids[0] for c in completions], minlength=CONFIG.vocab_size)
    expected = jax.nn.softmax(full_forward_logits(params, PROMPTS[0]) / 0.8)
    assert_frequencies(counts, np.asarray(expected, np.float64))


def test_a_completions_tokens_are_drawn_independently(params):
    uniform = jax.tree.map(jnp.zeros_like, params)
    drawn = SamplingConfig(max_new_tokens=2, temperature=1.0, batch_size=1000)
    completions = generate(CONFIG, uniform, None, [[1]] * 6000, drawn, NO_STOP, COMPUTE)
    vocab = CONFIG.vocab_size
    both = [first * vocab + second for first, second in (c.ids for c in completions)]
    assert_frequencies(np.bincount(both, minlength=vocab**2), np.full(vocab**2, vocab**-2.0))


def test_an_empty_prompt_is_refused(params):
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        generate(CONFIG, params, None, [[1], []], SamplingConfig(), NO_STOP, COMPUTE)


def test_no_prompts_no_completions(params):
    assert generate(CONFIG, params, None, [], SamplingConfig(), NO_STOP, COMPUTE) == []
