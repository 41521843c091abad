"""Sampling from a policy: batches of prompts, a cache of keys and values, one compiled loop."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.pairs import Message
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy
from jaxdpo.model.cache import KVCache, cached_hidden_states, empty_cache
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, logits
from jaxdpo.model.lora import LoraParams

# Prompts are padded to multiples of this, so that few lengths are ever compiled.
LENGTH_STEP = 64


class SamplingConfig(BaseModel):
    """How completions are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_new_tokens: int = Field(default=128, gt=0, description="Most tokens of a completion.")
    temperature: float = Field(
        default=0.0, ge=0, description="Divides the logits; 0 takes the likeliest token."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Draw from the fewest likeliest tokens that have this probability together.",
    )
    seed: int = Field(default=0, ge=0, description="Of the draws.")
    batch_size: int = Field(default=8, gt=0, description="Prompts decoded at a time.")


class Completion(NamedTuple):
    """A sampled completion.

    Attributes:
      ids: Its tokens, without the stop token.
      finished: Whether a stop token ended it, rather than `max_new_tokens`.
    """

    ids: list[int]
    finished: bool


def answer(
    policy: Policy,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingConfig | None = None,
) -> list[str]:
    """The policy's answer to each conversation.

        answer(policy, [[{"role": "user", "content": "When does it open?"}]])
        # ["At 9."]

    Args:
      policy: The model.
      conversations: Messages of each, the last one not the assistant's.
      sampling: How completions are drawn; by default the likeliest token, 128 at most.

    Raises:
      BadPair: If the chat template refuses the messages.
    """
    chat = policy.chat
    prompts = [chat.encode(messages, add_generation_prompt=True) for messages in conversations]
    dtype = jax.tree.leaves(policy.params)[0].dtype
    completions = generate(
        policy.config,
        policy.params,
        policy.lora,
        prompts,
        sampling or SamplingConfig(),
        chat.stop_token_ids,
        Compute(dtype, "dense", "none", policy.lora_config),
    )
    return [chat.decode(completion.ids) for completion in completions]


def generate(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    stop_token_ids: Sequence[int],
    compute: Compute,
) -> list[Completion]:
    """Samples one completion of each prompt; repeat a prompt for several.

        generate(config, params, None, [[5, 9], [7]], SamplingConfig(), [2], compute)
        # [Completion(ids=[11, 4], finished=True), Completion(ids=[8], finished=True)]

    A completion depends on the seed and on its prompt and the prompt's number alone: the draws do
    not change with the batch size or the other prompts (though rounding may, where two tokens are
    all but equally likely).

    Args:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      prompts: Token ids, at least one a prompt.
      sampling: Temperature, lengths, seed.
      stop_token_ids: Tokens that end a completion.
      compute: Dtype of the activations, and the adapters' scale.

    Raises:
      UserError: A prompt is empty, or outgrows the model's learned positions.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} has no tokens; a completion needs at least one")
        positions = config.learned_positions
        if positions is not None and len(prompt) + sampling.max_new_tokens > positions:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, and with {sampling.max_new_tokens} new "
                f"ones it would outgrow the model's {positions} positions; lower max_new_tokens"
            )
    # Prompts of like length go together: less padding, and fewer lengths in a batch.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), sampling.batch_size):
        numbers = order[start : start + sampling.batch_size]
        tokens_BP, positions_BP = _pad([prompts[n] for n in numbers], sampling.batch_size)
        new_BN = _decode(
            config,
            params,
            lora,
            (tokens_BP, positions_BP),
            _row_keys(sampling, numbers),
            np.array(stop_token_ids, np.int32),
            # The seed is in the keys already; another one is no reason to compile again.
            sampling.model_copy(update={"seed": 0}),
            compute,
        )
        for number, new in zip(numbers, np.asarray(new_BN)[: len(numbers)], strict=True):
            completions[number] = _until_stop(new.tolist(), stop_token_ids)
    return [completions[number] for number in range(len(prompts))]


def _pad(prompts: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and positions `[rows, P]`, prompts to the right; rows without a prompt are padding."""
    longest = max(map(len, prompts))
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    tokens_BP = np.zeros((rows, length), np.int32)
    positions_BP = np.full((rows, length), -1, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BP[row, length - len(prompt) :] = prompt
        positions_BP[row, length - len(prompt) :] = np.arange(len(prompt))
    return tokens_BP, positions_BP


def _row_keys(sampling: SamplingConfig, numbers: Sequence[int]) -> jax.Array:
    """A key for each row of a batch, from the seed and the prompt's number."""
    padded = np.zeros(sampling.batch_size, np.uint32)
    padded[: len(numbers)] = numbers
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))(padded)


def _until_stop(new: list[int], stop_token_ids: Sequence[int]) -> Completion:
    for index, token in enumerate(new):
        if token in stop_token_ids:
            return Completion(new[:index], finished=True)
    return Completion(new, finished=False)


class _Loop(NamedTuple):
    """What the decoding loop carries: the next token's logits, and what has been drawn."""

    count: jax.Array
    logits_BV: jax.Array
    cache: KVCache
    new_BN: jax.Array
    stopped_B: jax.Array


@partial(jax.jit, static_argnames=("config", "sampling", "compute"))
def _decode(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    prompts: tuple[jax.Array, jax.Array],
    keys_B: jax.Array,
    stop_token_ids: jax.Array,
    sampling: SamplingConfig,
    compute: Compute,
) -> jax.Array:
    """New tokens `[B, max_new_tokens]` of one batch; what follows a stop token means nothing."""
    tokens_BP, positions_BP = prompts
    rows, width = tokens_BP.shape
    lengths_B = positions_BP[:, -1] + 1

    def advance(tokens_BT, positions_BT, cache, start):
        hidden_BTD, cache = cached_hidden_states(
            config, params, lora, tokens_BT, positions_BT, cache, start, compute
        )
        return logits(config, params, hidden_BTD[:, -1]), cache

    def body(loop: _Loop) -> _Loop:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, loop.count)
        next_B = next_tokens(loop.logits_BV, keys, sampling.temperature, sampling.top_p)
        logits_BV, cache = advance(
            next_B[:, None], (lengths_B + loop.count)[:, None], loop.cache, width + loop.count
        )
        return _Loop(
            loop.count + 1,
            logits_BV,
            cache,
            loop.new_BN.at[:, loop.count].set(next_B),
            loop.stopped_B | jnp.isin(next_B, stop_token_ids),
        )

    def going(loop: _Loop) -> jax.Array:
        return (loop.count < sampling.max_new_tokens) & ~jnp.all(loop.stopped_B)

    slots = width + sampling.max_new_tokens
    cache = empty_cache(config, rows, slots, compute.dtype)
    logits_BV, cache = advance(tokens_BP, positions_BP, cache, 0)
    new_BN = jnp.zeros((rows, sampling.max_new_tokens), jnp.int32)
    no_prompt_B = lengths_B == 0
    start = _Loop(jnp.int32(0), logits_BV, cache, new_BN, no_prompt_B)
    return jax.lax.while_loop(going, body, start).new_BN


def next_tokens(
    logits_BV: jax.Array, keys_B: jax.Array, temperature: float, top_p: float
) -> jax.Array:
    """Draws a token for each row, i32 `[B]`, each row with its own key.

    With top-p (nucleus sampling, https://arxiv.org/abs/1904.09751) a token is left out if the
    tokens likelier than it have `top_p` of the probability, at that temperature, already.

    Args:
      logits_BV: f32.
      keys_B: A random key for each row.
      temperature: 0 takes the likeliest token.
      top_p: 1 leaves no token out.
    """
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    categorical = jax.vmap(jax.random.categorical)
    scaled_BV = logits_BV / temperature
    if top_p == 1:
        return categorical(keys_B, scaled_BV).astype(jnp.int32)
    sorted_BV, tokens_BV = jax.lax.top_k(scaled_BV, scaled_BV.shape[-1])
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.pad(jnp.cumsum(probabilities_BV, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    ranks_B = categorical(keys_B, jnp.where(before_BV < top_p, sorted_BV, -jnp.inf))
    return jnp.take_along_axis(tokens_BV, ranks_B[:, None], axis=-1)[:, 0].astype(jnp.int32)
