"""Decoding many completions: rows of a cache that are filled again as soon as enough are free."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.devices.sharding import on_every_device
from jaxdpo.devices.sizes import round_up
from jaxdpo.errors import UserError
from jaxdpo.model.cache import KVCache, PackedPrompts, decode, empty_cache, place, prefill
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params, logits, unstacked
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.draw import next_tokens

# The cache and the row of prompts are multiples of this, so that few lengths are ever compiled.
LENGTH_STEP = 64
# Tokens of the row in which prompts are computed, unless one is longer or all are fewer.
_PREFILL_TOKENS = 512
# Most tokens between two looks at what was drawn; fewer where texts are to be looked for in it.
_SEGMENT, _SEGMENT_WITH_STOP = 64, 16


class Model(NamedTuple):
    """What completions are drawn from.

    Attributes:
      config: Architecture.
      params: Parameters.
      lora: Adapters, or None.
      stop_token_ids: Tokens that end a completion.
      compute: Dtype of the activations, and the adapters' scale.
      decode: Token ids → text, needed for stop texts only.
    """

    config: ModelConfig
    params: Params
    lora: LoraParams | None
    stop_token_ids: Sequence[int]
    compute: Compute
    decode: Callable[[list[int]], str] | None = None


class Request(NamedTuple):
    """A completion that is wanted.

    Attributes:
      prompt: Token ids, at least one.
      sample: Its number among the completions of this prompt.
    """

    prompt: Sequence[int]
    sample: int = 0


class Completion(NamedTuple):
    """A sampled completion.

    Attributes:
      ids: Its tokens, without the stop token.
      finished: Whether a stop token or text ended it, rather than `max_new_tokens`.
      stop: The stop token that ended it, or None.
    """

    ids: list[int]
    finished: bool
    stop: int | None = None


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
        # [Completion([11, 4], finished=True, stop=2), Completion([8], finished=True, stop=2)]

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
    model = Model(config, params, lora, stop_token_ids, compute)
    completions = dict(generate_each(model, numbered(prompts), sampling))
    return [completions[number] for number in range(len(prompts))]


def numbered(prompts: Sequence[Sequence[int]]) -> list[Request]:
    """A request for each prompt: where one is repeated, for its first completion, its second, …"""
    seen: Counter[tuple[int, ...]] = Counter()
    requests = []
    for prompt in prompts:
        requests.append(Request(prompt, seen[tuple(prompt)]))
        seen[tuple(prompt)] += 1
    return requests


def generate_each(
    model: Model, requests: Sequence[Request], sampling: SamplingConfig
) -> Iterator[tuple[int, Completion]]:
    """Yields (number of the request, its completion) as they are done.

    A completion depends on the seed, its prompt and its sample's number alone: the draws do not
    change with the batch size or the other requests (though rounding may, where two tokens are all
    but equally likely).

    Raises:
      UserError: A prompt is empty, or outgrows the model's learned positions.
    """
    if not requests:
        return
    _check(model.config, requests, sampling)
    longest, total = _prompt_tokens(requests)
    row = round_up(max(longest, min(total, _PREFILL_TOKENS)), LENGTH_STEP)
    ring = round_up(longest + sampling.max_new_tokens + 1, LENGTH_STEP)
    rows = _Rows(model, requests, sampling, row, ring)
    waiting = deque(range(len(requests)))
    while waiting or rows.running:
        while waiting and len(rows.running) < sampling.batch_size:
            rows.fill(waiting)
        # Prompts are computed together: it does not pay to stop for each free row.
        wanted = max(1, sampling.batch_size // 4) if waiting else sampling.batch_size
        yield from rows.advance(wanted)


def _check(config: ModelConfig, requests: Sequence[Request], sampling: SamplingConfig) -> None:
    positions = config.learned_positions
    for number, request in enumerate(requests):
        if not len(request.prompt):
            raise UserError(f"prompt {number} has no tokens; a completion needs at least one")
        if positions is not None and len(request.prompt) + sampling.max_new_tokens > positions:
            raise UserError(
                f"prompt {number} has {len(request.prompt)} tokens, and with "
                f"{sampling.max_new_tokens} new ones it would outgrow the model's {positions} "
                "positions; lower max_new_tokens"
            )


def _prompt_tokens(requests: Sequence[Request]) -> tuple[int, int]:
    """The longest prompt's tokens, and those of all, each prompt once."""
    lengths = {tuple(request.prompt): len(request.prompt) for request in requests}.values()
    return max(lengths), sum(lengths)


class _Rows:
    """The rows that are decoded together, and which request each of them is at.

    Attributes:
      running: Row ↦ number of its request.
    """

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        row_length: int,
        ring: int,
    ):
        self._model, self._requests, self._sampling = model, requests, sampling
        self._row_length = row_length
        dtype = model.compute.dtype
        self._weights = _unstacked(model.params, model.lora, dtype)
        self._state = _empty(model.config, sampling.batch_size, ring, dtype)
        self.running: dict[int, int] = {}
        self._drawn: dict[int, list[int]] = {}

    def fill(self, waiting: deque[int]) -> None:
        """Begins waiting requests in free rows, as many as one row of prompts holds."""
        size = self._sampling.batch_size
        free = [row for row in range(size) if row not in self.running]
        tokens_T = np.zeros(self._row_length, np.int32)
        positions_T, segments_T = np.zeros_like(tokens_T), np.full_like(tokens_T, -1)
        starts_B, lengths_B = np.zeros(size, np.int32), np.zeros(size, np.int32)
        keys_B3 = np.zeros((size, 3), np.uint32)
        start_of: dict[tuple[int, ...], int] = {}
        used = 0
        while free and waiting:
            request = self._requests[waiting[0]]
            prompt = tuple(request.prompt)
            if prompt not in start_of:
                span = slice(used, used + len(prompt))
                if span.stop > self._row_length:
                    break
                tokens_T[span], positions_T[span] = prompt, np.arange(len(prompt))
                segments_T[span] = len(start_of)
                start_of[prompt], used = span.start, span.stop
            row = free.pop(0)
            self.running[row], self._drawn[row] = waiting.popleft(), []
            starts_B[row], lengths_B[row] = start_of[prompt], len(prompt)
            keys_B3[row] = _key_words(request)
        self._state = _fill(
            self._model.config,
            self._weights,
            PackedPrompts(tokens_T, positions_T, segments_T),
            (starts_B, lengths_B, keys_B3),
            np.int32(self._sampling.max_new_tokens),
            np.uint32(self._sampling.seed),
            self._state,
            self._model.compute,
        )

    def advance(self, wanted: int) -> Iterator[tuple[int, Completion]]:
        """Decodes until so many rows are free, or for a while; yields what is done."""
        sampling = self._sampling
        segment = _SEGMENT_WITH_STOP if sampling.stop else _SEGMENT
        self._state, tokens_BC, count, stopped_B = _advance(
            self._model.config,
            self._weights,
            np.array(self._model.stop_token_ids, np.int32),
            np.int32(wanted),
            self._state,
            (sampling.temperature, sampling.top_k, sampling.top_p),
            min(segment, sampling.max_new_tokens),
            self._model.compute,
        )
        tokens_BC, stopped_B = np.asarray(tokens_BC)[:, : int(count)], np.asarray(stopped_B)
        ended = np.zeros_like(stopped_B)
        for row, number in list(self.running.items()):
            drawn = self._drawn[row]
            drawn += tokens_BC[row].tolist()
            completion = self._completion(drawn, bool(stopped_B[row]))
            if completion is not None:
                ended[row] = True
                del self.running[row], self._drawn[row]
                yield number, completion
        if (ended & ~stopped_B).any():
            self._state = self._state._replace(stopped_B=self._state.stopped_B | ended)

    def _completion(self, drawn: list[int], stopped: bool) -> Completion | None:
        """What a row has come to, if it is done; what it drew after a stop token means nothing."""
        ids = drawn[: self._sampling.max_new_tokens]
        stops = [i for i, token in enumerate(ids) if token in self._model.stop_token_ids]
        stop = ids[stops[0]] if stops else None
        ids = ids[: stops[0]] if stops else ids
        with_text = self._up_to_text(ids)
        if with_text is not None:
            return Completion(ids[:with_text], finished=True)
        return Completion(ids, stop is not None, stop) if stopped else None

    def _up_to_text(self, ids: list[int]) -> int | None:
        """How many tokens it takes to have written a stop text; None if it is not written."""
        texts, decode_ids = self._sampling.stop, self._model.decode
        if not texts:
            return None
        assert decode_ids is not None, "stop texts need a tokenizer"

        def written(count: int) -> bool:
            return any(text in decode_ids(ids[:count]) for text in texts)

        if not written(len(ids)):
            return None
        return next(count for count in range(len(ids) + 1) if written(count))


def _key_words(request: Request) -> list[int]:
    """What the draws of a request depend on beside the seed: its prompt's hash and its number."""
    digest = hashlib.sha256(np.asarray(request.prompt, "<i4").tobytes()).digest()
    first, second = np.frombuffer(digest[:8], "<u4").tolist()
    return [first, second, request.sample]


class _State(NamedTuple):
    """What the rows carry on the device.

    Attributes:
      cache: Keys and values.
      logits_BV: Of each row's next token.
      keys_B: A key a row.
      drawn_B: i32, how many tokens were drawn.
      left_B: i32, how many more may be.
      stopped_B: bool, rows without a request under way.
    """

    cache: KVCache
    logits_BV: jax.Array
    keys_B: jax.Array
    drawn_B: jax.Array
    left_B: jax.Array
    stopped_B: jax.Array


_unstacked = jax.jit(unstacked, static_argnums=2)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(config: ModelConfig, rows: int, ring: int, dtype: jnp.dtype) -> _State:
    zeros_B = jnp.zeros(rows, jnp.int32)
    return _State(
        empty_cache(config, rows, ring, dtype),
        jnp.zeros((rows, config.vocab_size), jnp.float32),
        jax.random.split(jax.random.key(0), rows),
        zeros_B,
        zeros_B,
        jnp.ones(rows, bool),
    )


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="state")
def _fill(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    prompts: PackedPrompts,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    max_new_tokens: jax.Array,
    seed: jax.Array,
    state: _State,
    compute: Compute,
) -> _State:
    """Begins prompts in the rows that have a length; `rows` are starts, lengths and key words."""
    starts_B, lengths_B, words_B3 = rows
    hidden_TD, kv = prefill(config, *weights, prompts, compute)
    last_BD = hidden_TD[jnp.maximum(starts_B + lengths_B - 1, 0)]
    new_B = lengths_B > 0

    def key_of(words_3: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for word in words_3:
            key = jax.random.fold_in(key, word)
        return key

    return _State(
        place(state.cache, kv, starts_B, lengths_B),
        jnp.where(new_B[:, None], logits(config, weights[0], last_BD), state.logits_BV),
        jnp.where(new_B, jax.vmap(key_of)(words_B3), state.keys_B),
        jnp.where(new_B, 0, state.drawn_B),
        jnp.where(new_B, max_new_tokens, state.left_B),
        state.stopped_B & ~new_B,
    )


class _Loop(NamedTuple):
    count: jax.Array
    tokens_BC: jax.Array
    state: _State


@partial(jax.jit, static_argnames=("config", "how", "segment", "compute"), donate_argnames="state")
def _advance(
    config: ModelConfig,
    weights: tuple[Params, LoraParams | None],
    stop_token_ids: jax.Array,
    wanted: jax.Array,
    state: _State,
    how: tuple[float, int | None, float],
    segment: int,
    compute: Compute,
) -> tuple[_State, jax.Array, jax.Array, jax.Array]:
    """Draws up to `segment` tokens a row, until `wanted` rows have stopped.

    Returns:
      The state; the tokens `[B, segment]`, how many of them were drawn, and which rows stopped.
    """

    def going(loop: _Loop) -> jax.Array:
        return (loop.count < segment) & (jnp.sum(loop.state.stopped_B) < wanted)

    def body(loop: _Loop) -> _Loop:
        state = loop.state
        keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.drawn_B)
        next_B = next_tokens(state.logits_BV, keys_B, *how)
        hidden_BD, cache = decode(config, *weights, next_B, state.cache, compute)
        left_B = state.left_B - 1
        ended_B = jnp.isin(next_B, stop_token_ids) | (left_B <= 0)
        return _Loop(
            loop.count + 1,
            jax.lax.dynamic_update_slice(loop.tokens_BC, next_B[:, None], (0, loop.count)),
            _State(
                cache,
                logits(config, weights[0], hidden_BD),
                state.keys_B,
                state.drawn_B + 1,
                left_B,
                state.stopped_B | ended_B,
            ),
        )

    tokens_BC = jnp.zeros((state.stopped_B.shape[0], segment), jnp.int32)
    loop = jax.lax.while_loop(going, body, _Loop(jnp.int32(0), tokens_BC, state))
    return loop.state, *on_every_device((loop.tokens_BC, loop.count, loop.state.stopped_B))
