"""Decoding many completions: rows of a cache that are filled again as soon as enough are free."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from jaxdpo.devices.sizes import round_up
from jaxdpo.errors import UserError
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraParams
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.pool import Model, RowPool, RowRequest
from jaxdpo.sampling.rows import SEGMENT

# The cache and the row of prompts are multiples of this, so that few lengths are ever compiled.
LENGTH_STEP = 64
# Tokens of the row in which prompts are computed, unless one is longer or all are fewer.
_PREFILL_TOKENS = 512
# Most tokens between two looks where texts are to be looked for in what was drawn.
_SEGMENT_WITH_STOP = 16


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
    pool = RowPool(model, sampling.batch_size, ring)
    waiting = deque(range(len(requests)))
    rows: dict[int, _Row] = {}
    segment = min(_SEGMENT_WITH_STOP if sampling.stop else SEGMENT, sampling.max_new_tokens)
    # A row that has finished is filled again while the others go on, so that short completions do
    # not wait for long ones.
    while waiting or pool.running:
        while waiting and len(pool.running) < sampling.batch_size:
            next_ones = [
                _asked(requests[n], sampling) for n in islice(waiting, sampling.batch_size)
            ]
            for begun in pool.begin(next_ones, row):
                rows[begun.row] = _Row(waiting.popleft(), [])
        # Prompts are computed together: it does not pay to stop for each free row.
        wanted = max(1, sampling.batch_size // 4) if waiting else sampling.batch_size
        for drawn in pool.advance(wanted, segment):
            number, ids = rows[drawn.row]
            ids += drawn.ids
            completion = _completion(model, sampling, ids, drawn.stopped)
            if completion is not None:
                # Rows that ended by a text, which the device knows nothing of, are freed here.
                if not drawn.stopped:
                    pool.end([drawn.row])
                yield number, completion


class _Row(NamedTuple):
    """A row's request, by number, and the tokens that it has drawn."""

    number: int
    ids: list[int]


def _asked(request: Request, sampling: SamplingConfig) -> RowRequest:
    return RowRequest(
        request.prompt,
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.seed,
        request.sample,
    )


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


def _completion(
    model: Model, sampling: SamplingConfig, drawn: list[int], stopped: bool
) -> Completion | None:
    """Returns a row's completion, or None if it isn't done; what follows a stop is dropped."""
    # A segment may go on behind the end of a row, until enough others have ended.
    ids = drawn[: sampling.max_new_tokens]
    at = next((i for i, token in enumerate(ids) if token in model.stop_token_ids), None)
    stop = None if at is None else ids[at]
    ids = ids[:at]
    with_text = up_to_text(sampling.stop, ids, model.decode)
    if with_text is not None:
        return Completion(ids[:with_text], finished=True)
    return Completion(ids, stop is not None, stop) if stopped else None


def up_to_text(
    texts: Sequence[str], ids: list[int], decode: Callable[[list[int]], str] | None
) -> int | None:
    """Returns how many tokens it takes to have written a stop text; None if none is.

    Args:
      texts: The stop texts.
      ids: The tokens of a completion.
      decode: Token ids → text; needed where there are texts.
    """
    if not texts:
        return None
    assert decode is not None, "stop texts need a tokenizer"

    def written(count: int) -> bool:
        return any(text in decode(ids[:count]) for text in texts)

    # The text of all tokens first: nearly always it holds no stop text, and one look suffices.
    if not written(len(ids)):
        return None
    return next(count for count in range(len(ids) + 1) if written(count))
