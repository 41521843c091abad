"""Rows that are decoded together, each at a request of its own, from the host's side.

    pool = RowPool(model, rows=16, slots=256)
    begun = pool.begin(requests, row_length=512)   # prompts computed, as many as fit
    for drawn in pool.advance(wanted=1, steps=16):  # each row's new tokens
        ...
    pool.end([3])                                  # a row that need not go on

A pool knows tokens alone. Whoever drives it decides which request comes next, what ends one before
its limit, and how long the rows' ring is.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.model.cache import PackedPrompts
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.draw import row_draws
from jaxdpo.sampling.logprobs import TokenLogprobs
from jaxdpo.sampling.rows import (
    BegunRows,
    advance_rows,
    begin_rows,
    empty_rows,
    resize_rows,
    unstacked_weights,
)

# How many of the likeliest tokens' log-probabilities are recorded where any are asked for: as many
# as OpenAI's interface allows, so that there is one program for all numbers.
TOP_LOGPROBS = 20


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


class RowRequest(NamedTuple):
    """A completion that is wanted of a row.

    Attributes:
      prompt: Token ids, at least one.
      max_new_tokens: Most tokens of the completion.
      temperature: Divides the logits; 0 takes the likeliest token.
      top_k: Draw from this many likeliest tokens; None for all.
      top_p: Draw from the fewest likeliest tokens that have this probability together.
      seed: Of the draws, below 2**32.
      sample: Its number among the completions of this prompt.
      logprobs: Whether log-probabilities of the drawn tokens are wanted.
      prompt_logprobs: Whether those of the prompt's tokens are.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0
    logprobs: bool = False
    prompt_logprobs: bool = False

    def key_words(self) -> list[int]:
        """Returns the words that the draws depend on: seed, hash of the prompt, and sample."""
        # Python's own hash of a tuple differs between versions; "<i4" and not the machine's
        # integers.
        digest = hashlib.sha256(np.asarray(self.prompt, "<i4").tobytes()).digest()
        first, second = np.frombuffer(digest[:8], "<u4").tolist()
        return [self.seed, first, second, self.sample]


class BegunRow(NamedTuple):
    """A request that has begun.

    Attributes:
      row: The row that it was given.
      prompt_logprobs: Log-probabilities of the prompt's tokens from the second on, where wanted.
    """

    row: int
    prompt_logprobs: TokenLogprobs | None


class RowTokens(NamedTuple):
    """Tokens that one row drew since the last look.

    Attributes:
      row: The row.
      ids: Its new tokens. The first stop token among them ends the completion; what stands behind
        it, or behind the request's limit, belongs to nothing.
      stopped: Whether the device saw the row end.
      logprobs: Of these tokens, where wanted.
    """

    row: int
    ids: list[int]
    stopped: bool
    logprobs: TokenLogprobs | None


class RowPool:
    """A model's rows on its device.

    Attributes:
      running: Row ↦ the request that it is at.
      rows: How many there are.
      slots: Length of the ring: most tokens of a row, prompt and completion.
    """

    def __init__(
        self,
        model: Model,
        rows: int,
        slots: int,
        weights: tuple[Params, LoraParams | None] | None = None,
    ):
        """Makes rows without requests.

        Args:
          model: The model.
          rows: How many are decoded together.
          slots: Length of the ring.
          weights: The model's weights, `unstacked` already; by default they are made here.
        """
        self._model, self.rows, self.slots = model, rows, slots
        dtype = model.compute.dtype
        self._weights = weights or unstacked_weights(model.params, model.lora, dtype)
        state = empty_rows(model.config, rows, slots, dtype)
        if jax.sharding.get_abstract_mesh().empty:
            # Bound to the weights' device, as all later states are: a state that may lie anywhere
            # would have `begin_rows` compiled once for the first rows and again for all others.
            state = jax.device_put(state, _everywhere(jax.tree.leaves(self._weights)[0]))
        self._state = state
        self.running: dict[int, RowRequest] = {}

    def begin(self, requests: Sequence[RowRequest], row_length: int) -> list[BegunRow]:
        """Begins the first of some requests in free rows, as many as one row of prompts holds.

        A prompt that several of them have is computed once.

        Args:
          requests: Those that wait, in their order.
          row_length: Tokens of the row in which prompts are computed; at least the first prompt's.

        Returns:
          A row for each request that has begun, in their order.
        """
        packed, placed = _packed(requests[: self.rows - len(self.running)], row_length)
        free = (row for row in range(self.rows) if row not in self.running)
        begun = list(zip(free, placed, strict=False))
        starts_B, lengths_B, limits_B = (np.zeros(self.rows, np.int32) for _ in range(3))
        words_B4 = np.zeros((self.rows, 4), np.uint32)
        settings = [RowRequest((), 0)] * self.rows
        for row, (request, start) in begun:
            self.running[row] = settings[row] = request
            starts_B[row], lengths_B[row] = start, len(request.prompt)
            limits_B[row], words_B4[row] = request.max_new_tokens, request.key_words()
        draws = row_draws(
            [each.temperature for each in settings],
            [each.top_k for each in settings],
            [each.top_p for each in settings],
        )
        wanted = any(request.prompt_logprobs for _, (request, _) in begun)
        self._state, logprobs = begin_rows(
            self._model.config,
            self._weights,
            packed,
            BegunRows(
                jnp.asarray(starts_B),
                jnp.asarray(lengths_B),
                jnp.asarray(limits_B),
                jnp.asarray(words_B4),
                draws,
            ),
            self._state,
            self._model.compute,
            TOP_LOGPROBS if wanted else 0,
        )
        logprobs = jax.device_get(logprobs)
        return [
            BegunRow(row, _of_prompt(logprobs, request, start)) for row, (request, start) in begun
        ]

    def advance(self, wanted: int, steps: int) -> list[RowTokens]:
        """Decodes until so many rows are free, or for so many steps; returns what was drawn.

        Rows that the device saw end are free afterwards.

        Args:
          wanted: Number of free rows that is waited for.
          steps: Most tokens of each row, at most `SEGMENT`.
        """
        recorded = any(request.logprobs for request in self.running.values())
        self._state, drawn = advance_rows(
            self._model.config,
            self._weights,
            np.array(self._model.stop_token_ids, np.int32),
            np.int32(wanted),
            np.int32(steps),
            self._state,
            TOP_LOGPROBS if recorded else 0,
            self._model.compute,
        )
        # The one wait for the device: everything up to here was queued.
        drawn = jax.device_get(drawn)
        count = int(drawn.count)
        tokens = [
            RowTokens(
                row,
                drawn.tokens_BC[row, :count].tolist(),
                bool(drawn.stopped_B[row]),
                None
                if not request.logprobs
                else jax.tree.map(lambda leaf, row=row: leaf[row, :count], drawn.logprobs),
            )
            for row, request in self.running.items()
        ]
        for each in tokens:
            if each.stopped:
                del self.running[each.row]
        return tokens

    def end(self, rows: Iterable[int]) -> None:
        """Frees rows that the device would go on with: a stop text was written, or nobody waits."""
        ended = np.zeros(self.rows, bool)
        for row in rows:
            ended[row] = True
            self.running.pop(row, None)
        if ended.any():
            self._state = self._state._replace(stopped_B=self._state.stopped_B | ended)

    def resize(self, slots: int) -> None:
        """Gives the ring another length, which must hold what the running rows have drawn."""
        if slots != self.slots:
            self._state, self.slots = resize_rows(self._state, slots), slots


def _packed(
    requests: Sequence[RowRequest], row_length: int
) -> tuple[PackedPrompts, list[tuple[RowRequest, int]]]:
    """Packs the prompts of as many requests as fit; returns where each one's prompt begins."""
    tokens_T = np.zeros(row_length, np.int32)
    # Padding is a segment of its own, −1, which no prompt sees.
    positions_T, segments_T = np.zeros_like(tokens_T), np.full_like(tokens_T, -1)
    start_of: dict[tuple[int, ...], int] = {}
    placed, used = [], 0
    for request in requests:
        prompt = tuple(request.prompt)
        if prompt not in start_of:
            span = slice(used, used + len(prompt))
            # In the order of the requests: a shorter one behind it does not overtake.
            if span.stop > row_length:
                break
            tokens_T[span], positions_T[span] = prompt, np.arange(len(prompt))
            segments_T[span] = len(start_of)
            start_of[prompt], used = span.start, span.stop
        placed.append((request, start_of[prompt]))
    return PackedPrompts(tokens_T, positions_T, segments_T), placed


def _of_prompt(
    logprobs: TokenLogprobs | None, request: RowRequest, start: int
) -> TokenLogprobs | None:
    if logprobs is None or not request.prompt_logprobs:
        return None
    # A place holds what is known of the token after it, so the last one's belongs to no prompt.
    return jax.tree.map(lambda leaf: leaf[start : start + len(request.prompt) - 1], logprobs)


def _everywhere(weight: jax.Array) -> jax.sharding.Sharding:
    """Returns the sharding of an array that is whole on every device that holds a weight."""
    where = weight.sharding
    if isinstance(where, jax.sharding.NamedSharding):
        # The weight's own axes are not the state's, whose arrays have other ranks.
        return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    return where
