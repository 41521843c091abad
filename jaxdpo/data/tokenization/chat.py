"""Conversations → token ids, by the tokenizer's own chat template.

A pair is rendered three times, whole: the prompt with its generation prompt, and the prompt with
each completion. Prompt and completion part where the token ids do, so a token that spans the seam
belongs to the completion, as it does when the model writes it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import Message, PreferencePair, TokenizedPair
from jaxdpo.data.tokenization.control_tokens import ControlTokens
from jaxdpo.data.tokenization.template import NO_KWARGS, PROBE, ChatTemplate, Rendered
from jaxdpo.errors import UserError
from jaxdpo.storage.files import json_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of every fingerprint: raise it when the same pair would get other ids.
ALGORITHM_VERSION = 2


@dataclass(frozen=True)
class EncodedPair:
    """A pair's tokens, and whether its text spelled a control token (and was kept as text)."""

    tokens: TokenizedPair
    spelled_control: bool


class Chat:
    """A tokenizer and its chat template: the one way from messages to token ids and back.

    Example:
      chat = Chat(load_tokenizer("models/tiny"))
      ids = chat.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

    Text in a message never becomes a control token, whatever it spells (see `control_tokens`);
    all else is what `tokenizer.apply_chat_template` gives.

    Attributes:
      tokenizer: The Hugging Face tokenizer.
      end_token_id: The token that ends an assistant's message, and every completion.
      stop_token_ids: Where sampling stops: the end token, and the end of the text.
      fingerprint: SHA-256 of all that token ids depend on.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", template: str | None = None):
        """Looks at a tokenizer, and at a template to use in place of its own.

        Raises:
          UserError: If there is no template, or it cannot be used.
        """
        self.tokenizer = tokenizer
        self._controls = ControlTokens(tokenizer.backend_tokenizer)
        self._template = ChatTemplate(tokenizer, template, self._controls)
        self.end_token_id = cast(int, tokenizer.convert_tokens_to_ids(self._template.end_token))
        eos = cast(int | None, tokenizer.eos_token_id)
        stops = {self.end_token_id} if eos is None else {self.end_token_id, eos}
        self.stop_token_ids = tuple(sorted(stops))
        if self._controls.unknown_id in self.stop_token_ids:
            self._controls.forbid_unknown()
        self.fingerprint = self._fingerprint()
        self._check_faithful()

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
        template_kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> list[int]:
        """The ids of a conversation.

        Args:
          messages: `{"role": ..., "content": ...}` each.
          tools: Function definitions for the template.
          add_generation_prompt: Whether to open the assistant's next message.
          template_kwargs: Further variables for the template.

        Raises:
          BadPair: If the template refuses the messages, or their text cannot be encoded.
        """
        text = self._template.render(messages, tools, add_generation_prompt, template_kwargs).text
        return _or_raise(self._controls.encode([text])[0]).tolist()

    def encode_pair(self, pair: PreferencePair) -> TokenizedPair:
        """The ids of one pair; see `encode_pairs`.

        Raises:
          BadPair: If the pair cannot be encoded.
        """
        encoded = self.encode_pairs([pair])[0]
        if isinstance(encoded, BadPair):
            raise encoded
        return encoded.tokens

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | BadPair]:
        """The ids of each pair, or why it has none; many at once, for the tokenizer's threads.

        The prompt ends where its ids part from either full conversation's, so both completions
        follow the same prompt. Each completion ends in the end token: what the template writes
        after it is cut, and it is added where the template writes none. Of a completion of several
        messages, what stands between those of the assistant is not scored.

        Pairs that came as token ids are taken as they are.
        """
        rendered = [self._render_pair(pair) for pair in pairs]
        texts = [
            text for item in rendered if isinstance(item, _RenderedPair) for text in item.texts
        ]
        ids = iter(self._controls.encode(texts))
        return [
            self._assemble(item, [next(ids) for _ in item.texts])
            if isinstance(item, _RenderedPair)
            else item
            for item in rendered
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, without special tokens."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render_pair(self, pair: PreferencePair) -> "_RenderedPair | EncodedPair | BadPair":
        try:
            if pair.token_ids is not None:
                return self._given_ids(pair.token_ids)
            # A supervised example has no rejected completion.
            answers = [answer for answer in (pair.chosen, pair.rejected) if answer]
            said = [*pair.prompt, *itertools.chain(*answers)]
            harmless = self._template.harmless(said, pair.tools, pair.template_kwargs)
            prompt = self._render(pair, (), True, harmless)
            whole = [self._render(pair, answer, False, harmless) for answer in answers]
            turns = [
                self._render_turns(pair, answer, conversation.text)
                for answer, conversation in zip(answers, whole, strict=True)
            ]
        except BadPair as bad:
            return bad
        conversations = [prompt, *whole]
        return _RenderedPair(
            texts=[each.text for each in conversations] + list(itertools.chain(*turns)),
            ended=[self._template.ended(each.text) for each in whole],
            spelled_control=any(each.spelled_control for each in conversations),
            chosen_turns=len(turns[0]),
        )

    def _render(
        self,
        pair: PreferencePair,
        answer: Sequence[Message],
        prompt: bool,
        harmless: bool | None = None,
    ) -> Rendered:
        messages = [*pair.prompt, *answer]
        return self._template.render(messages, pair.tools, prompt, pair.template_kwargs, harmless)

    def _render_turns(
        self, pair: PreferencePair, answer: Sequence[Message], whole: str
    ) -> list[str]:
        """The conversation as it ends after each message by the assistant but the last, and as it
        is when the next one is opened."""
        own = [i for i, message in enumerate(answer) if message["role"] == "assistant"]
        texts = []
        for this, following in itertools.pairwise(own):
            opened = self._render(pair, answer[:following], True).text
            before = self._render(pair, answer[:following], False).text
            if not whole.startswith(_shared_start(opened, before)):
                raise BadPair(
                    "turns-rewritten",
                    "the chat template writes a completion's earlier messages in another way once "
                    "more follow, so they cannot be scored as the model wrote them; leave the last "
                    "message as the completion, the others as prompt",
                )
            texts += [self._render(pair, answer[: this + 1], False).text, opened]
        return texts

    def _given_ids(self, token_ids: Sequence[Sequence[int]]) -> EncodedPair:
        size = len(self.tokenizer)
        for name, ids in zip(TokenizedPair._fields, token_ids, strict=False):
            if max(ids) >= size:
                raise BadPair(
                    "token-ids",
                    f"{name} holds {max(ids)}, but the tokenizer has ids below {size}; the data "
                    "was tokenised for another model",
                )
        prompt, chosen, rejected = (np.array(ids, np.int32) for ids in token_ids)
        return EncodedPair(TokenizedPair(prompt, chosen, rejected), False)

    def _assemble(
        self, item: "_RenderedPair", encoded: Sequence[np.ndarray | BadPair]
    ) -> EncodedPair | BadPair:
        try:
            prompt, *rest = [_or_raise(ids) for ids in encoded]
            count = len(item.ended)
            whole, turns = rest[:count], rest[count:]
            start = min(_common_prefix(prompt, conversation) for conversation in whole)
            if start == 0:
                raise BadPair(
                    "no-prompt",
                    "the chat template renders the prompt differently with an answer than without, "
                    "from the first token on; use another template",
                )
            completions = [
                self._ended(conversation[start:], ended)
                for conversation, ended in zip(whole, item.ended, strict=True)
            ]
            missing = [np.zeros(0, np.int32)] * (2 - count)
            pair = TokenizedPair(
                prompt[:start],
                *completions,
                *missing,
                chosen_unscored=self._between(whole[0], turns[: item.chosen_turns], start),
                rejected_unscored=self._between(whole[-1], turns[item.chosen_turns :], start),
            )
        except BadPair as bad:
            return bad
        if np.array_equal(pair.chosen_ids, pair.rejected_ids):
            return BadPair(
                "identical-tokens",
                "chosen and rejected are the same tokens once rendered; edit one or drop the line",
            )
        return EncodedPair(pair, item.spelled_control)

    def _between(self, whole: np.ndarray, turns: Sequence[np.ndarray], start: int) -> np.ndarray:
        """Spans between the assistant's messages, i32 `[2 * k]`, counted from `start`."""
        spans = []
        begin = start
        for closed, opened in zip(turns[::2], turns[1::2], strict=True):
            end = _common_prefix(whole, closed)
            # What the template writes after the end token is not the assistant's.
            ends = np.flatnonzero(whole[begin:end] == self.end_token_id)
            end = begin + int(ends[-1]) + 1 if len(ends) else end
            begin = max(end, _common_prefix(whole, opened))
            spans += [end - start, begin - start]
        return np.array(spans, np.int32)

    def _ended(self, completion: np.ndarray, ended: bool) -> np.ndarray:
        """The completion up to its last end token if the template ended it, else with one."""
        (at,) = (completion == self.end_token_id).nonzero()
        if ended and len(at):
            return completion[: at[-1] + 1]
        return np.append(completion, np.int32(self.end_token_id))

    def _fingerprint(self) -> str:
        state = [
            ALGORITHM_VERSION,
            self.tokenizer.backend_tokenizer.to_str(),
            {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            self._template.source,
        ]
        return json_digest(state)

    def _check_faithful(self) -> None:
        """Compares ids with the tokenizer's own, on text that spells no control token."""
        probe = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        if self.encode(probe) != self.tokenizer.apply_chat_template(
            probe, chat_template=self._template.dateless, return_dict=False
        ):
            raise UserError(
                f"{self.tokenizer.name_or_path}: this tokenizer takes control tokens for text, or "
                'text for them, after normalising it; set "normalized" to false for each of the '
                "added_tokens in tokenizer.json"
            )


@dataclass(frozen=True)
class _RenderedPair:
    """Prompt, prompt with chosen and prompt with rejected completion, as text.

    Attributes:
      texts: Spelled; after those three come the turns within completions of several messages.
      ended: Whether the template ended each completion with the end token.
      spelled_control: Whether any text in them spelled a control token.
      chosen_turns: How many texts after those three are of turns of the chosen completion; further
        ones are of the rejected.
    """

    texts: list[str]
    ended: list[bool]
    spelled_control: bool
    chosen_turns: int


def load_chat(path: str, template_path: str | None = None) -> Chat:
    """A model folder's tokenizer with its chat template, or with a template from a file.

    Raises:
      UserError: If either cannot be loaded, or there is no template.
    """
    template = None
    if template_path is not None:
        try:
            template = Path(template_path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data.chat_template {template_path}: cannot be read: {error}"
            ) from error
    tokenizer = load_tokenizer(path)
    if template is not None:
        # On the tokenizer itself, so that it is saved with it.
        tokenizer.chat_template = template
    return Chat(tokenizer)


def load_tokenizer(path: str) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a model folder or `org/name`, without running code from it.

    Raises:
      UserError: If it is missing, damaged, needs code of its own, or has no fast version.
    """
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~"))):
        raise UserError(f"{path}: no such folder; name a model folder, or org/name on the Hub")
    if folder.is_dir() and not any(folder.glob("tokenizer*")):
        raise UserError(
            f"{path}: holds no tokenizer (tokenizer.json, tokenizer_config.json); copy its files "
            "from the model that it belongs to"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if folder.is_dir() else path, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the tokenizer cannot be loaded: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{path}: the tokenizer has no fast version (tokenizer.json); save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def _or_raise(ids: np.ndarray | BadPair) -> np.ndarray:
    if isinstance(ids, BadPair):
        raise ids
    return ids


def _shared_start(a: str, b: str) -> str:
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False))
    return a[: sum(1 for _ in same)]


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    (different,) = (a[:length] != b[:length]).nonzero()
    return int(different[0]) if len(different) else length
