"""Preference pairs → token ids: one prompt, and what follows it in either answer.

A pair is rendered three times, whole: the prompt with its generation prompt, as the model will be
asked, and the prompt with each completion. Three, because a template may write the same messages in
another way once more follow, and because token ids depend on the text on both sides of a seam: ids
of a completion that was encoded by itself are not those that the model produces.

Where prompt and completion part, there are three cases, for each completion:

- its ids continue the prompt's, which is nearly always so;
- a token spans the seam: it belongs to the completion, and the prompt ends before it;
- the template leaves out what the generation prompt opens (`<think>\\n` of R1-Distill): the prompt
  stays as it will be asked, and the completion begins after what both renderings share.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import NO_SPANS, SAMPLED, Message, PreferencePair, TokenizedPair
from jaxdpo.data.tokenization.prefixes import common_prefix, last_place, shared_start
from jaxdpo.data.tokenization.reasoning import ends_in_opening
from jaxdpo.data.tokenization.template import ChatTemplate, Rendered


@dataclass(frozen=True)
class EncodedPair:
    """A pair's tokens, and what had to be decided about them.

    Attributes:
      tokens: The token ids.
      spelled_control: Whether its text spelled a control token (and was kept as text).
      reopened: Whether the template writes an answer without what the generation prompt opens, so
        that it was put after the prompt as it will be asked.
      ids_unused: Whether an answer has the ids that were sampled, but by another tokenizer or not
        of this text, so that the text was encoded.
    """

    tokens: TokenizedPair
    spelled_control: bool = False
    reopened: bool = False
    ids_unused: bool = False


@dataclass(frozen=True)
class _Answer:
    """A completion, rendered after its prompt or as it was sampled.

    Attributes:
      sampled: Its ids, i32, where it carries them; nothing is rendered then.
      text: Prompt and completion, spelled, up to the completion's end if the template writes one.
      spelled_control: Whether any text in them spelled a control token.
      end: Ids to add: the token that ends it, where the template writes none.
      turns: The conversation as it ends after each message by the assistant but the last, and as
        it is when the next one is opened, alternately.
    """

    sampled: np.ndarray | None = None
    text: str = ""
    spelled_control: bool = False
    end: tuple[int, ...] = ()
    turns: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """Everything that is to be encoded."""
        return [self.text, *self.turns] if self.sampled is None else []


@dataclass(frozen=True)
class _RenderedPair:
    """A prompt and its completions as spelled text.

    Attributes:
      prompt: With its generation prompt.
      header: What the generation prompt adds, where a completion's rendering does not begin with
        the prompt; else nothing.
      answers: Chosen and, unless the pair has one answer alone, rejected.
      spelled_control: Whether any text spelled a control token.
      ids_unused: As in `EncodedPair`.
    """

    prompt: str
    header: str
    answers: list[_Answer]
    spelled_control: bool
    ids_unused: bool

    @property
    def texts(self) -> list[str]:
        """Everything that is to be encoded."""
        return [self.prompt, *itertools.chain(*(answer.texts for answer in self.answers))]


class PairEncoder:
    """Renders pairs by a template and puts their ids together.

    Attributes:
      end_ids: Tokens that end an answer; the first ends one of text.
    """

    def __init__(
        self,
        template: ChatTemplate,
        end_ids: Sequence[int],
        end_of_call_id: int,
        sampled_ids: Callable[[Message], np.ndarray | None],
    ):
        """Takes what encodes.

        Args:
          template: The chat template.
          end_ids: Tokens that end an answer; the first ends one of text.
          end_of_call_id: The token that ends an answer which calls a tool.
          sampled_ids: Returns the ids that a message was sampled as, if they are this tokenizer's
            and still say what the message does.
        """
        self._template = template
        self._controls = template.controls
        self.end_ids = tuple(end_ids)
        self._end_of_call_id = end_of_call_id
        self._sampled_ids = sampled_ids

    def encode(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | BadPair]:
        """Encodes pairs that have messages, or says why one cannot be encoded."""
        rendered = [self._rendered(pair) for pair in pairs]
        texts = [
            text for each in rendered if isinstance(each, _RenderedPair) for text in each.texts
        ]
        # All texts at once, for the tokenizer's threads.
        ids = iter(self._controls.encode(texts))
        return [
            self._assembled(each, [next(ids) for _ in each.texts])
            if isinstance(each, _RenderedPair)
            else each
            for each in rendered
        ]

    def _rendered(self, pair: PreferencePair) -> _RenderedPair | BadPair:
        # A supervised example has no rejected completion.
        completions = [answer for answer in (pair.chosen, pair.rejected) if answer]
        sampled = [self._sampled(completion) for completion in completions]
        said = [*pair.prompt, *itertools.chain(*completions)]
        carry_ids = sum(SAMPLED in message for message in said)
        if carry_ids:
            pair = _without_ids(pair)
            completions = [answer for answer in (pair.chosen, pair.rejected) if answer]
            said = [*pair.prompt, *itertools.chain(*completions)]
        try:
            harmless = self._template.harmless(said, pair.tools, pair.template_kwargs)
            prompt = self._render(pair, (), True, harmless)
            answers = [
                self._rendered_answer(pair, completion, harmless)
                if ids is None
                else _Answer(sampled=ids)
                for completion, ids in zip(completions, sampled, strict=True)
            ]
            begun = all(a.sampled is not None or a.text.startswith(prompt.text) for a in answers)
            header = "" if begun else self._header(pair, prompt.text)
        except BadPair as bad:
            return bad
        return _RenderedPair(
            prompt=prompt.text,
            header=header,
            answers=answers,
            spelled_control=any(each.spelled_control for each in (prompt, *answers)),
            ids_unused=carry_ids > sum(ids is not None for ids in sampled),
        )

    def _sampled(self, completion: Sequence[Message]) -> np.ndarray | None:
        # Of several messages each was sampled after another prompt: their texts are encoded.
        return self._sampled_ids(completion[0]) if len(completion) == 1 else None

    def _rendered_answer(
        self, pair: PreferencePair, completion: Sequence[Message], harmless: bool
    ) -> _Answer:
        whole = self._render(pair, completion, False, harmless)
        turns = self._rendered_turns(pair, completion, whole.text)
        # A model may end a call in another token than an answer.
        text, ended = self._template.closed(whole.text)
        end = self._end_of_call_id if "tool_calls" in completion[-1] else self.end_ids[0]
        return _Answer(
            text=text,
            spelled_control=whole.spelled_control,
            end=() if ended else (end,),
            turns=turns,
        )

    def _header(self, pair: PreferencePair, asked: str) -> str:
        """Returns what the generation prompt adds to a rendered prompt."""
        closed = self._render(pair, (), False).text
        return asked[len(shared_start(closed, asked)) :]

    def _render(
        self,
        pair: PreferencePair,
        answer: Sequence[Message],
        prompt: bool,
        harmless: bool | None = None,
    ) -> Rendered:
        messages = [*pair.prompt, *answer]
        return self._template.render(messages, pair.tools, prompt, pair.template_kwargs, harmless)

    def _rendered_turns(
        self, pair: PreferencePair, completion: Sequence[Message], whole: str
    ) -> list[str]:
        """Renders a completion as it is after each of its messages; see `_Answer.turns`."""
        own = [i for i, message in enumerate(completion) if message["role"] == "assistant"]
        texts = []
        for this, following in itertools.pairwise(own):
            opened = self._render(pair, completion[:following], True).text
            before = self._render(pair, completion[:following], False).text
            closed = self._render(pair, completion[: this + 1], False).text
            # What is asked before the next message, and this message as it was written, must both
            # stand in the whole: a template that drops earlier reasoning rewrites the latter.
            if not all(
                whole.startswith(text)
                for text in (shared_start(opened, before), self._template.unclosed(closed))
            ):
                raise BadPair(
                    "turns-rewritten",
                    "the chat template writes a completion's earlier messages in another way once "
                    "more follow, so they cannot be scored as the model wrote them; leave the last "
                    "message as the completion, the others as prompt",
                )
            texts += [closed, opened]
        return texts

    def _assembled(
        self, item: _RenderedPair, encoded: Sequence[np.ndarray | BadPair]
    ) -> EncodedPair | BadPair:
        parts: list[np.ndarray] = []
        for ids in encoded:
            if isinstance(ids, BadPair):
                return ids
            parts.append(ids)
        prompt, *rest = parts
        seams: list[_Seam] = []
        for answer in item.answers:
            own, rest = rest[: len(answer.texts)], rest[len(answer.texts) :]
            seam = self._seam(item, answer, prompt, own)
            if isinstance(seam, BadPair):
                return seam
            seams.append(seam)
        start = min(seam.prompt_length for seam in seams)
        if start == 0:
            return BadPair(
                "no-prompt",
                "the chat template renders the prompt differently with an answer than without, "
                "from the first token on; use another template",
            )
        # A prompt that ends earlier for one completion's sake ends there for both.
        chosen, rejected = (
            (np.concatenate([prompt[start : seam.prompt_length], seam.completion]), seam)
            for seam in (*seams, *[_NO_ANSWER] * (2 - len(seams)))
        )
        tokens = TokenizedPair(
            prompt[:start],
            chosen[0],
            rejected[0],
            *(seam.unscored + (seam.prompt_length - start) for _, seam in (chosen, rejected)),
        )
        if np.array_equal(tokens.chosen_ids, tokens.rejected_ids):
            return BadPair(
                "identical-tokens",
                "chosen and rejected are the same tokens once rendered; edit one or drop the line",
            )
        reopened = any(seam.reopened for seam in seams)
        return EncodedPair(tokens, item.spelled_control, reopened, item.ids_unused)

    def _seam(
        self, item: _RenderedPair, answer: _Answer, prompt: np.ndarray, own: Sequence[np.ndarray]
    ) -> "_Seam | BadPair":
        """Finds where a completion begins, and what it is.

        Args:
          item: The pair.
          answer: One of its completions.
          prompt: Ids of the prompt.
          own: Ids of the answer's texts.
        """
        if answer.sampled is not None:
            return _Seam(len(prompt), answer.sampled)
        whole, *turns = own
        found = self._parted(item, answer.text, prompt, whole)
        if isinstance(found, BadPair):
            return found
        prompt_length, completion, reopened = found
        # The whole ends as the completion does, however they begin.
        unscored = self._between(whole, turns, len(whole) - len(completion))
        completion = np.append(completion, np.array(answer.end, np.int32))
        return _Seam(prompt_length, completion, unscored, reopened)

    def _parted(
        self, item: _RenderedPair, text: str, prompt: np.ndarray, whole: np.ndarray
    ) -> tuple[int, np.ndarray, bool] | BadPair:
        """Parts a completion from its prompt.

        Args:
          item: The pair.
          text: Prompt and completion, spelled.
          prompt: Ids of the prompt as it will be asked.
          whole: Ids of prompt and completion.

        Returns:
          How much of the prompt precedes the completion, the completion's ids, and whether it is
          written without what the generation prompt opens.
        """
        shared, asked = common_prefix(prompt, whole), item.prompt
        if shared == len(prompt):
            return shared, whole[shared:], False
        opening, closing = map(self._controls.spell, self._template.reasoning.tags or ("", ""))
        if text.startswith(asked):
            if opening and ends_in_opening(asked, opening):
                # `<think>\n` and `\n</think>`: two line breaks are one token in the whole, but the
                # model, which is asked with the first of them, writes the second by itself.
                [rest] = self._controls.encode([text[len(asked) :]])
                if not isinstance(rest, BadPair):
                    return len(prompt), rest, False
            return shared, whole[shared:], False
        same = shared_start(asked, text)
        left_out = asked[len(same) :]
        if len(left_out) > len(item.header):
            # The prompt itself is written in another way once an answer follows (gpt-oss leaves out
            # earlier reasoning). The answer is what follows the last header.
            [header] = self._controls.encode([item.header])
            at = -1 if isinstance(header, BadPair) else last_place(header, whole)
            if at < 0:
                return BadPair(
                    "prompt-rewritten",
                    "the chat template writes the prompt in another way once an answer follows, so "
                    "the answer cannot be put after the prompt as it will be asked; use another "
                    "template (data.chat_template)",
                )
            return len(prompt), whole[at:], True
        if closing and closing in left_out:
            # The prompt closes reasoning which this answer has: the record contradicts what will be
            # asked, unless that is asked with reasoning switched on. It is trained as it is.
            return shared, whole[shared:], True
        return len(prompt), whole[shared:], True

    def _between(self, whole: np.ndarray, turns: Sequence[np.ndarray], start: int) -> np.ndarray:
        """Returns spans between the assistant's messages, i32 `[2 * k]`, counted from `start`.

        Args:
          whole: Ids of prompt and completion.
          turns: Ids of the answer's turns, as in `_Answer`.
          start: Where the completion begins.
        """
        spans = []
        begin = start
        for closed, opened in zip(turns[::2], turns[1::2], strict=True):
            end = common_prefix(whole, closed)
            # What the template writes after the end token is not the assistant's.
            ends = np.flatnonzero(np.isin(whole[begin:end], self.end_ids))
            end = begin + int(ends[-1]) + 1 if len(ends) else end
            begin = max(end, common_prefix(whole, opened))
            spans += [end - start, begin - start]
        return np.array(spans, np.int32)


class _Seam(NamedTuple):
    """A completion, and the place in the prompt that it follows.

    Attributes:
      prompt_length: Tokens of the prompt that precede it.
      completion: Its ids, i32.
      unscored: Spans of it that the assistant did not write, i32 `[2 * k]`.
      reopened: Whether it is written without what the generation prompt opens.
    """

    prompt_length: int
    completion: np.ndarray
    unscored: np.ndarray = NO_SPANS
    reopened: bool = False


_NO_ANSWER = _Seam(0, np.zeros(0, np.int32))


def _without_ids(pair: PreferencePair) -> PreferencePair:
    prompt, chosen, rejected = (
        tuple({key: value for key, value in message.items() if key != SAMPLED} for message in part)
        for part in (pair.prompt, pair.chosen, pair.rejected)
    )
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)
