"""Answers judged one by one → what KTO trains on: each beside an answer to another prompt.

KTO weighs an answer against how far the policy has moved from its reference on unrelated answers to
the same prompts. So an example is laid out as a pair is, `[prompt | answer | mismatched answer]`,
and its prompt is computed once for both.

Which answer is mismatched depends on the data alone: the examples are ordered by a digest of their
tokens, and each has the answer of the next one whose prompt is another. (Ethayarajh et al. 2024 and
TRL move answers on by one within a microbatch; here it is the same answer in every epoch, whatever
the batch, so its reference log-probs are scored once like all others.)
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdpo.data.pairs import Message, Split, TokenizedPair
from jaxdpo.data.tokenization.pair_store import NO_LABEL, TokenizedPairs
from jaxdpo.errors import UserError


class LabelledPairs(Sequence[TokenizedPair]):
    """Labelled answers as pairs: `chosen` is the answer, `rejected` another prompt's answer.

    A preference pair among them stands for two: its chosen answer, found good, and its rejected one
    (after all others), found bad. Nothing is copied; the ids stay views of the pairs' memory map.

    Attributes:
      lengths: i32 `[N, 3]`, tokens of prompt, answer and mismatched answer.
      labels: f32 `[N]`, 1 where the answer was found good, 0 where it was found bad.
      cut: How many mismatched answers lose their end to fit beside the prompt. (They are not
        learnt; no answer that is learnt is cut.)
      fingerprint: Digest of all that training depends on.
      report: What happened to the answers when they were tokenised.
    """

    def __init__(self, pairs: TokenizedPairs, max_length: int):
        """Puts the answers of one split side by side.

        Args:
          pairs: The split.
          max_length: Most tokens of a prompt and one answer.

        Raises:
          UserError: If all answers are to one prompt.
        """
        self._pairs = pairs
        # A pair has two answers to learn from; a labelled record has one.
        unpaired = np.flatnonzero(pairs.labels == NO_LABEL)
        self._row = np.concatenate([np.arange(len(pairs)), unpaired])
        self._side = np.repeat([0, 1], [len(pairs), len(unpaired)])
        self.labels = np.concatenate([pairs.labels != 0, np.zeros(len(unpaired))]).astype(
            np.float32
        )
        self._other = _mismatched(*self._digests())
        prompts = pairs.lengths[self._row, 0]
        answers = pairs.lengths[self._row, 1 + self._side]
        # Only the mismatched answer, which nothing learns, may lose its end for lack of room.
        whole, room = answers[self._other], max_length - prompts
        self.lengths = np.stack([prompts, answers, np.minimum(whole, room)], -1).astype(np.int32)
        self.cut = int((whole > room).sum())
        # Which answer is mismatched with which is a part of what is trained.
        state = hashlib.sha256(f"labelled {pairs.fingerprint}".encode())
        for array in (self.labels, self._other, self.lengths):
            state.update(array.tobytes())
        self.fingerprint = state.hexdigest()
        self.report = pairs.report

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> TokenizedPair:  # pyright: ignore[reportIncompatibleMethodOverride]
        prompt, answer, unscored = self._answer(index)
        _, other, other_unscored = self._answer(int(self._other[index]))
        other = other[: self.lengths[index, 2]]
        return TokenizedPair(prompt, answer, other, unscored, other_unscored)

    def source(self, index: int) -> str:
        """Returns where the answer came from, as `file:line`."""
        return self._pairs.source(int(self._row[index]))

    def prompt(self, index: int) -> list[Message] | None:
        """Returns the messages of a prompt, kept for the first pairs of a split; else None."""
        return self._pairs.prompt(int(self._row[index]))

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns the record's metadata."""
        return self._pairs.metadata(int(self._row[index]))

    def summary(self) -> str:
        """Counts the answers by label, and the mismatched ones that were shortened."""
        good = int(self.labels.sum())
        said = f"{good} answers labelled true, {len(self) - good} false"
        return said + (f"; {self.cut} mismatched answers cut to fit" if self.cut else "")

    def _answer(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pair = self._pairs[int(self._row[index])]
        if self._side[index]:
            return pair.prompt_ids, pair.rejected_ids, pair.rejected_unscored
        return pair.prompt_ids, pair.chosen_ids, pair.chosen_unscored

    def _digests(self) -> tuple[np.ndarray, np.ndarray]:
        """Computes digests of every example's prompt, and of prompt and answer, u64 `[N]` each."""
        digests = np.zeros((2, len(self)), np.uint64)
        for index in range(len(self)):
            prompt, answer, _ = self._answer(index)
            state = hashlib.blake2b(prompt.tobytes(), digest_size=8)
            digests[0, index] = int.from_bytes(state.digest(), "big")
            state.update(b"|" + answer.tobytes())
            digests[1, index] = int.from_bytes(state.digest(), "big")
        return digests[0], digests[1]


Examples = TokenizedPairs | LabelledPairs


def examples_of(
    splits: Mapping[Split, TokenizedPairs], losses: Sequence[str], max_length: int
) -> dict[Split, Examples]:
    """Returns what a run's losses learn from: the pairs, or with kto answers one by one.

    Args:
      splits: The tokenised pairs.
      losses: Names of the losses.
      max_length: Most tokens of a prompt and one answer.

    Raises:
      UserError: If answers that were judged one by one meet a loss of pairs.
    """
    if "kto" in losses:
        return {split: LabelledPairs(pairs, max_length) for split, pairs in splits.items()}
    for pairs in splits.values():
        alone = np.flatnonzero(pairs.labels != NO_LABEL)
        if len(alone):
            raise UserError(
                f"{pairs.source(int(alone[0]))}: one answer with a label, but "
                f"{' and '.join(losses)} learn from pairs; set loss.type=kto"
            )
    return dict(splits)


def _mismatched(prompts: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Finds for each example the next one, by `examples`, with another prompt; the last is followed
    by the first.

    >>> _mismatched(np.array([7, 7, 8]), np.array([10, 20, 30])).tolist()
    [2, 2, 0]
    """
    # Sorted by digest, the order depends on the data alone, and not on where a record stands.
    count = len(prompts)
    if not count:
        return np.zeros(0, np.int64)
    order = np.argsort(examples, kind="stable")
    # Twice around, so that the search below never runs off the end.
    twice = np.tile(prompts[order], 2)
    # Where a run of one prompt ends and another begins.
    begins = np.flatnonzero(twice[1:] != twice[:-1]) + 1
    if not len(begins):
        raise UserError(
            f"all {count} answers of a split are to one prompt, and loss.type=kto compares each "
            "with an answer to another prompt; add prompts, or set data.test_fraction"
        )
    following = begins[np.searchsorted(begins, np.arange(count), side="right")] % count
    other = np.empty(count, np.int64)
    other[order] = order[following]
    return other
