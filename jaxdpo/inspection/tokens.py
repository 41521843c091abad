"""What a model will see of pairs: lengths, what is cut, how they pack, and their tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.packing.plan import BatchConfig, Packer, choose_row_length, make_train_plan
from jaxdpo.data.pairs import PreferencePair, TokenizedPair, scored_tokens
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.truncation import fit
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.inspection.findings import Finding

_EXAMPLES = 5


@dataclass(frozen=True)
class Seen:
    """One pair as the model sees it.

    Attributes:
      source: Where it stands.
      outcome: What was done to make it fit.
      cut: Prompt tokens that it lost.
      spans: (kind, text) of each token; kinds: prompt, cut, scored, unscored, end, between.
    """

    source: str
    outcome: str
    cut: int
    spans: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tokenized:
    """Pairs as tokens.

    Attributes:
      lengths: i32 `[N, 3]` of the pairs that can be used, TRAIN first; of labelled answers
        `[N, 2]`.
      forecast: Lines on packing and cost.
      findings: What tokenising brought up.
      shown: The pairs to look at.
    """

    lengths: np.ndarray
    forecast: tuple[str, ...]
    findings: tuple[Finding, ...]
    shown: tuple[Seen, ...]


def tokenize(
    pairs: Sequence[PreferencePair],
    chat: Chat,
    max_length: int,
    batch: BatchConfig,
    show: int | tuple[int, ...],
) -> Tokenized:
    """Encodes and fits all pairs, and plans an epoch of the TRAIN ones.

    Args:
      pairs: The pairs.
      chat: What encodes them.
      max_length: Most tokens of a prompt and one completion.
      batch: How an epoch is planned.
      show: Pairs to look at: how many, or those that stand on these lines.
    """
    outcomes: dict[str, list[str]] = {}
    lengths: dict[str, list[list[int]]] = {"TRAIN": [], "TEST": []}
    shown: list[Seen] = []
    prompts, kept = 0, 0
    for start in range(0, len(pairs), 1024):
        some = pairs[start : start + 1024]
        for pair, encoded in zip(some, chat.encode_pairs(some), strict=True):
            if isinstance(encoded, BadPair):
                outcomes.setdefault("refused", []).append(f"{pair.source} [{encoded.code}]")
                continue
            fitted = fit(pair, encoded.tokens, chat, max_length)
            outcomes.setdefault(fitted.outcome, []).append(pair.source)
            if encoded.spelled_control:
                outcomes.setdefault("control", []).append(pair.source)
            if fitted.tokens is not None:
                prompts += len(encoded.tokens.prompt_ids)
                kept += len(fitted.tokens.prompt_ids)
                lengths[pair.split].append([len(ids) for ids in fitted.tokens[:3]])
            if len(shown) < show if isinstance(show, int) else _line(pair) in show:
                shown.append(_seen(pair, encoded.tokens, fitted.tokens, fitted.outcome, chat))
    train = np.array(lengths["TRAIN"], np.int32).reshape(-1, 3)
    both = np.array(lengths["TRAIN"] + lengths["TEST"], np.int32).reshape(-1, 3)
    if len(train) and all(pair.label is not None for pair in pairs):
        # In training each stands beside an answer to another prompt.
        train = np.concatenate([train[:, :2], np.roll(train[:, 1:2], 1, axis=0)], axis=1)
        both = both[:, :2]
    forecast = _forecast(train, batch) if len(train) else ("no TRAIN pair can be used",)
    if kept < prompts:
        lost = prompts - kept
        forecast = (f"{lost:,} of {prompts:,} prompt tokens are cut to fit {max_length}", *forecast)
    return Tokenized(both, forecast, tuple(_findings(outcomes, max_length)), tuple(shown))


def _findings(outcomes: dict[str, list[str]], max_length: int) -> list[Finding]:
    kinds = [
        ("refused", "refused", "pairs cannot be rendered or encoded", "mend or drop them"),
        (
            "cut", "cut_by_message", f"prompts lose their oldest turns to fit {max_length} tokens",
            "raise data.max_length if memory allows",
        ),
        (
            "cut-within", "cut_by_token", f"prompts are cut within a message to fit {max_length}",
            "raise data.max_length if memory allows",
        ),
        (
            "dropped", "dropped", f"pairs are dropped: completions leave {max_length} no room",
            "raise data.max_length, or shorten the answers",
        ),
        (
            "control-text", "control", "pairs spell control tokens in their text",
            "they are kept as plain text; look whether they were meant to be",
        ),
    ]  # fmt: skip
    return [
        Finding(code, title, len(outcomes[key]), tuple(outcomes[key][:_EXAMPLES]), remedy)
        for code, key, title, remedy in kinds
        if key in outcomes
    ]


def _forecast(lengths: np.ndarray, batch: BatchConfig) -> tuple[str, ...]:
    if batch.size > len(lengths):
        return (f"batch.size {batch.size} is more than the {len(lengths)} TRAIN pairs",)
    row_length = choose_row_length(lengths, batch, batch.rows_per_device)
    packer = Packer(lengths, batch, batch.rows_per_device, row_length)
    plan = make_train_plan(packer, seed=0, epochs=1.0, max_steps=None)
    microbatches = [m for step in range(plan.num_steps) for m in plan.microbatches(step)]
    pairs = np.concatenate([np.concatenate(microbatch) for microbatch in microbatches])
    padded = len(microbatches) * batch.rows_per_device * row_length
    tokens = int(lengths[pairs.astype(np.int64)].sum())
    apart = tokens + int(lengths[pairs.astype(np.int64), 0].sum())
    return (
        f"an epoch is {plan.num_steps} steps of {batch.size} pairs, in {len(microbatches)} "
        f"microbatches of {batch.rows_per_device} × {row_length} tokens",
        f"{tokens / padded:.0%} of {padded:,} computed tokens are data; prompts shared by both "
        f"completions save {1 - tokens / apart:.0%}",
        f"about {6 * padded:.3g} floating point operations an epoch for each parameter of the "
        "model, and a third as many for the reference",
    )


def _seen(
    pair: PreferencePair,
    whole: TokenizedPair,
    fitted: TokenizedPair | None,
    outcome: str,
    chat: Chat,
) -> Seen:
    tokens = whole if fitted is None else fitted
    cut = len(whole.prompt_ids) - len(tokens.prompt_ids)
    spans = [
        (kind, text)
        for kind, ids in _prompt_parts(whole.prompt_ids, tokens.prompt_ids)
        for text in _texts(ids, chat)
    ]
    chosen = "chosen" if pair.label is None else f"label {pair.label}".lower()
    for name, ids, unscored in (
        (chosen, tokens.chosen_ids, tokens.chosen_unscored),
        ("rejected", tokens.rejected_ids, tokens.rejected_unscored),
    ):
        if not len(ids):
            continue
        scored = set(scored_tokens(len(ids), unscored).tolist())
        spans.append(("between", name))
        for i, (id, text) in enumerate(zip(ids, _texts(ids, chat), strict=True)):
            kind = "end" if id in chat.end_ids else "scored"
            spans.append((kind if i in scored else "unscored", text))
    return Seen(pair.source, outcome, cut, tuple(spans))


def _prompt_parts(whole: np.ndarray, kept: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The prompt with what was cut from it, where the rest stands unchanged on either side."""
    same = whole[: len(kept)] == kept[: len(whole)]
    start = len(kept) if same.all() else int(same.argmin())
    end = len(whole) - (len(kept) - start)
    if not np.array_equal(whole[end:], kept[start:]):
        return [("prompt", kept)]
    return [("prompt", whole[:start]), ("cut", whole[start:end]), ("prompt", whole[end:])]


def _line(pair: PreferencePair) -> int | None:
    line = pair.source.rpartition(":")[2]
    return int(line) if line.isdecimal() else None


def _texts(ids: np.ndarray, chat: Chat) -> list[str]:
    """What each token adds to the text; a character of several tokens stands with its last."""
    tokenizer = chat.tokenizer
    texts, start = [], 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[start:end].tolist()))
        if text.endswith("\ufffd") and end - start < 4 and end < len(ids):
            texts.append("")
            continue
        texts.append(text)
        start = end
    return texts


def length_lines(lengths: np.ndarray) -> list[tuple[str, ...]]:
    """Rows of a table: part, median, 95th percentile and longest, in tokens."""
    if not len(lengths):
        return []
    return [
        (name, *(f"{value:.0f}" for value in np.percentile(column, [50, 95, 100])))
        for name, column in zip(part_names(lengths), lengths.T, strict=True)
    ]


def part_names(lengths: np.ndarray) -> tuple[str, ...]:
    """What the columns of lengths are of."""
    return ("prompt", "answer") if lengths.shape[1] == 2 else ("prompt", "chosen", "rejected")


def histogram(values: np.ndarray, bins: int = 30) -> list[tuple[int, int]]:
    """(upper edge, count) of equal bins from 0 to the longest."""
    width = max(ceil_div(int(values.max(initial=0)) + 1, bins), 1)
    counts = Counter((values // width).tolist())
    return [(width * (i + 1), counts[i]) for i in range(int(values.max(initial=0)) // width + 1)]
