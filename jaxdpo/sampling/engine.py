"""Decoding many completions: rows of a cache that are filled again as soon as enough are free."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.devices.sizes import round_up
from jaxdpo.errors import UserError
from jaxdpo.model.cache import PackedPrompts
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Compute, Params
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.draw import DrawConfig
from jaxdpo.sampling.rows import BegunRows, advance_rows, begin_rows, empty_rows, unstacked_weights

# The cache and the row of prompts are multiples of this, so that few lengths are ever compiled.
LENGTH_STEP = 64
# Tokens of the row in which prompts are computed, unless one is longer or all are fewer.
_PREFILL_TOKENS = 512
# Most tokens between two looks at what was drawn; fewer where texts are to be looked for in it.
_SEGMENT, _SEGMENT_WITH_STOP = 64, 16


class Model(NamedTuple):
    """A model as the engine takes it.

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
    """Makes a request for each prompt; where one is repeated, its samples are numbered."""
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

    Args:
      model: The model and its stop tokens.
      requests: Prompts, and which completion of theirs is wanted.
      sampling: Temperature, lengths, seed, and how many rows are decoded together.

    Raises:
      UserError: A prompt is empty, or outgrows the model's learned positions.
    """
    if not requests:
        return
    _check(model.config, requests, sampling)
    longest, total = _prompt_tokens(requests)
    # One row of prompts a time, of few different lengths: long enough for the longest prompt.
    row = round_up(max(longest, min(total, _PREFILL_TOKENS)), LENGTH_STEP)
    # A prompt, its completion, and the slot that is written next.
    ring = round_up(longest + sampling.max_new_tokens + 1, LENGTH_STEP)
    rows = _Rows(model, requests, sampling, row, ring)
    waiting = deque(range(len(requests)))
    # A row that has finished is filled again while the others go on, so that short completions do
    # not wait for long ones.
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
    """Counts the longest prompt's tokens, and those of all, each different prompt once."""
    lengths = {tuple(request.prompt): len(request.prompt) for request in requests}.values()
    return max(lengths), sum(lengths)


def _everywhere(weight: jax.Array) -> jax.sharding.Sharding:
    """Returns the sharding of an array that is whole on every device that holds a weight."""
    where = weight.sharding
    if isinstance(where, jax.sharding.NamedSharding):
        # The weight's own axes are not the state's, whose arrays have other ranks.
        return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    return where


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
        self._weights = unstacked_weights(model.params, model.lora, dtype)
        state = empty_rows(model.config, sampling.batch_size, ring, dtype)
        if jax.sharding.get_abstract_mesh().empty:
            # Bound to the weights' device, as all later states are: a state that may lie anywhere
            # would have `begin_rows` compiled once for the first rows and again for all others.
            state = jax.device_put(state, _everywhere(jax.tree.leaves(self._weights)[0]))
        self._state = state
        self.running: dict[int, int] = {}
        self._drawn: dict[int, list[int]] = {}

    def fill(self, waiting: deque[int]) -> None:
        """Begins waiting requests in free rows, as many as one row of prompts holds."""
        size = self._sampling.batch_size
        free = [row for row in range(size) if row not in self.running]
        tokens_T = np.zeros(self._row_length, np.int32)
        positions_T, segments_T = np.zeros_like(tokens_T), np.full_like(tokens_T, -1)
        starts_B, lengths_B = np.zeros(size, np.int32), np.zeros(size, np.int32)
        words_B3 = np.zeros((size, 3), np.uint32)
        start_of: dict[tuple[int, ...], int] = {}
        used = 0
        # In the order of the requests, and a prompt that several of them have is computed once.
        while free and waiting:
            request = self._requests[waiting[0]]
            prompt = tuple(request.prompt)
            if prompt not in start_of:
                span = slice(used, used + len(prompt))
                if span.stop > self._row_length:
                    break
                tokens_T[span], positions_T[span] = prompt, np.arange(len(prompt))
                # Padding is a segment of its own, −1, which no prompt sees.
                segments_T[span] = len(start_of)
                start_of[prompt], used = span.start, span.stop
            row = free.pop(0)
            self.running[row], self._drawn[row] = waiting.popleft(), []
            starts_B[row], lengths_B[row] = start_of[prompt], len(prompt)
            words_B3[row] = _key_words(request)
        self._state = begin_rows(
            self._model.config,
            self._weights,
            PackedPrompts(tokens_T, positions_T, segments_T),
            BegunRows(jnp.asarray(starts_B), jnp.asarray(lengths_B), jnp.asarray(words_B3)),
            np.int32(self._sampling.max_new_tokens),
            np.uint32(self._sampling.seed),
            self._state,
            self._model.compute,
        )

    def advance(self, wanted: int) -> Iterator[tuple[int, Completion]]:
        """Decodes until so many rows are free, or for a while; yields what is done."""
        sampling = self._sampling
        segment = _SEGMENT_WITH_STOP if sampling.stop else _SEGMENT
        self._state, drawn_BC, count, stopped_B = advance_rows(
            self._model.config,
            self._weights,
            np.array(self._model.stop_token_ids, np.int32),
            np.int32(wanted),
            self._state,
            DrawConfig(sampling.temperature, sampling.top_k, sampling.top_p),
            min(segment, sampling.max_new_tokens),
            self._model.compute,
        )
        # The one wait for the device: everything up to here was queued.
        tokens_BC, stopped_B = np.asarray(drawn_BC)[:, : int(count)], np.asarray(stopped_B)
        ended = np.zeros_like(stopped_B)
        for row, number in list(self.running.items()):
            drawn = self._drawn[row]
            drawn += tokens_BC[row].tolist()
            completion = self._completion(drawn, bool(stopped_B[row]))
            if completion is not None:
                ended[row] = True
                del self.running[row], self._drawn[row]
                yield number, completion
        # Rows that ended by a text, which the device knows nothing of, are free as well.
        if (ended & ~stopped_B).any():
            self._state = self._state._replace(stopped_B=self._state.stopped_B | ended)

    def _completion(self, drawn: list[int], stopped: bool) -> Completion | None:
        """Returns a row's completion, or None if it isn't done; what follows a stop is dropped."""
        # A segment may go on behind the end of a row, until enough others have ended.
        ids = drawn[: self._sampling.max_new_tokens]
        stops = [i for i, token in enumerate(ids) if token in self._model.stop_token_ids]
        stop = ids[stops[0]] if stops else None
        ids = ids[: stops[0]] if stops else ids
        with_text = self._up_to_text(ids)
        if with_text is not None:
            return Completion(ids[:with_text], finished=True)
        return Completion(ids, stop is not None, stop) if stopped else None

    def _up_to_text(self, ids: list[int]) -> int | None:
        """Returns how many tokens it takes to have written a stop text; None if none is."""
        texts, decode_ids = self._sampling.stop, self._model.decode
        if not texts:
            return None
        assert decode_ids is not None, "stop texts need a tokenizer"

        def written(count: int) -> bool:
            return any(text in decode_ids(ids[:count]) for text in texts)

        # The text of all tokens first: nearly always it holds no stop text, and one look suffices.
        if not written(len(ids)):
            return None
        return next(count for count in range(len(ids) + 1) if written(count))


def _key_words(request: Request) -> list[int]:
    """Returns the words that a request's draws depend on beside the seed: hash and sample."""
    # Python's own hash of a tuple differs between versions; "<i4" and not the machine's integers.
    digest = hashlib.sha256(np.asarray(request.prompt, "<i4").tobytes()).digest()
    first, second = np.frombuffer(digest[:8], "<u4").tolist()
    return [first, second, request.sample]
