"""Conversations → token ids, by the tokenizer's own chat template.

A pair is rendered three times, whole: the prompt with its generation prompt, and the prompt with
each completion. Prompt and completion part where the token ids do, so a token that spans the seam
belongs to the completion, as it does when the model writes it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jinja2
import numpy as np

from jaxdpo.data.control_tokens import SPELLING_LENGTH, WALL, ControlTokens, last_spelling
from jaxdpo.data.pairs import Message, PreferencePair, TokenizedPair
from jaxdpo.data.records import BadPair, show, strings
from jaxdpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of every fingerprint: raise it when the same pair would get other ids.
ALGORITHM_VERSION = 1
# What a template does to its input can fail in any of these ways; jinja2's own is the usual one.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
)
_PROBE = "Probe 7Qx1, in two\nlines."
# A template that writes today's date would give other tokens every day, and a run that restarts
# other data. It gets the date that Llama 3's templates have by default.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24')"
    " | replace('%A', 'Friday') | replace('%a', 'Fri') | replace('%H', '00')"
    " | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}{{ '' }}"
)


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
      template: The chat template's source.
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
        self.template = _own_template(tokenizer) if template is None else template
        dated = "strftime_now" in self.template
        self._source = _FIXED_DATE + self.template if dated else self.template
        self._controls = ControlTokens(tokenizer.backend_tokenizer)
        self.end_token_id = self._find_end()
        eos = cast(int | None, tokenizer.eos_token_id)
        self.stop_token_ids = tuple(dict.fromkeys([self.end_token_id, *([eos] if eos else [])]))
        if self._controls.unknown_id in self.stop_token_ids:
            self._controls.forbid_unknown()
        self.fingerprint = self._fingerprint()
        self._check_faithful()

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """The ids of a conversation.

        Args:
          messages: `{"role": ..., "content": ...}` each.
          tools: Function definitions for the template.
          add_generation_prompt: Whether to open the assistant's next message.

        Raises:
          BadPair: If the template refuses the messages, or their text cannot be encoded.
        """
        spelled, _ = self._render(messages, tools, add_generation_prompt)
        return _or_raise(self._controls.encode([spelled])[0]).tolist()

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
        after it is cut, and it is added where the template writes none.
        """
        rendered = [self._render_pair(pair) for pair in pairs]
        texts: dict[str, None] = {}
        for item in rendered:
            if not isinstance(item, BadPair):
                texts |= dict.fromkeys(text for part in item.parts for text in part)
        ids = dict(zip(texts, self._controls.encode(list(texts)), strict=True))
        return [self._assemble(item, ids) for item in rendered]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids, without special tokens."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render_pair(self, pair: PreferencePair) -> "_Rendered | BadPair":
        try:
            conversations = [
                self._render(pair.prompt, pair.tools, True),
                self._render([*pair.prompt, *pair.chosen], pair.tools, False),
                self._render([*pair.prompt, *pair.rejected], pair.tools, False),
            ]
        except BadPair as bad:
            return bad
        texts = [text for text, _ in conversations]
        return _Rendered(
            self._parts(texts), spelled_control=any(spelled for _, spelled in conversations)
        )

    def _parts(self, texts: list[str]) -> list[tuple[str, ...]]:
        """Cuts the part that all texts share from each, so that it is encoded once.

        The cut is before the prompt's last control token, which then starts the rest: tokenizers
        treat the first characters of a text differently from those after a token.
        """
        cut = last_spelling(texts[0])
        shared = cut > 0 and all(text.startswith(texts[0]) for text in texts)
        if not (shared and self._controls.splittable):
            return [(text,) for text in texts]
        return [(texts[0][: cut + SPELLING_LENGTH], text[cut:]) for text in texts]

    def _assemble(
        self, item: "_Rendered | BadPair", ids: Mapping[str, np.ndarray | BadPair]
    ) -> EncodedPair | BadPair:
        if isinstance(item, BadPair):
            return item
        try:
            prompt, chosen, rejected = (
                # The control token at the cut stands in both parts.
                np.concatenate(
                    [_or_raise(ids[part[0]]), *(_or_raise(ids[t])[1:] for t in part[1:])]
                )
                for part in item.parts
            )
            start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
            if start == 0:
                raise BadPair(
                    "no-prompt",
                    "the chat template renders the prompt differently with an answer than without, "
                    "from the first token on; use another template",
                )
            pair = TokenizedPair(
                prompt[:start], self._ended(chosen[start:]), self._ended(rejected[start:])
            )
        except BadPair as bad:
            return bad
        if np.array_equal(pair.chosen_ids, pair.rejected_ids):
            return BadPair(
                "identical-tokens",
                "chosen and rejected are the same tokens once rendered; edit one or drop the line",
            )
        return EncodedPair(pair, item.spelled_control)

    def _ended(self, completion: np.ndarray) -> np.ndarray:
        """The completion up to its last end token if only white space follows, else with one."""
        ends = np.flatnonzero(completion == self.end_token_id)
        if len(ends):
            after = completion[ends[-1] + 1 :]
            if not self.decode(after[~self._controls.is_control[after]]).strip():
                return completion[: ends[-1] + 1]
        return np.append(completion, np.int32(self.end_token_id))

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], prompt: bool
    ) -> tuple[str, bool]:
        """The conversation with control tokens spelled, and whether text in it spelled one."""
        said = [list(messages), list(tools)]
        walled = [
            [{**self._wall(message), "role": message["role"]} for message in messages],
            self._wall(list(tools)),
        ]
        rendered = self._apply(said[0], said[1], prompt)
        for name in _function_names(messages, tools):
            if name not in rendered:
                raise BadPair(
                    "tools-not-rendered",
                    f"the chat template leaves out the function {show(name)}; use one that writes "
                    "tools and tool calls, or remove them",
                )
        if walled == said:
            return self._controls.spell(rendered), False
        spelled = [text for _, text in strings(said) if self._controls.pattern.search(text)]
        with_walls = self._apply(walled[0], walled[1], prompt)
        if with_walls.replace(WALL, "") == rendered:
            return self._controls.spell(with_walls), bool(spelled)
        if spelled:
            raise BadPair(
                "control-text",
                f"{show(spelled[0])} spells a control token, and the chat template rewrites text "
                "that does, so the two cannot be told apart; remove it",
            )
        return self._controls.spell(rendered), False

    def _wall(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._controls.wall(value)
        if isinstance(value, dict):
            # Templates look fields up by name: a name is touched only if it spells a control token.
            return {
                self._wall(key) if self._controls.pattern.search(key) else key: self._wall(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._wall(item) for item in value]
        return value

    def _apply(self, messages: Any, tools: Any, prompt: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self._source,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except _TEMPLATE_ERRORS as error:
            raise BadPair("template", f"the chat template refuses the messages: {error}") from error
        return cast(str, rendered)

    def _find_end(self) -> int:
        """The first control token after an assistant's text, or else the end of text."""
        probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
        try:
            rendered = self._apply(probe, None, False)
        except BadPair as bad:
            raise UserError(f"the chat template cannot be used: {bad.reason}") from bad
        if _PROBE not in rendered:
            raise UserError("the chat template does not write the assistant's answer; use another")
        end = self._controls.pattern.search(rendered, rendered.rindex(_PROBE) + len(_PROBE))
        if end:
            return cast(int, self.tokenizer.convert_tokens_to_ids(end[0]))
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "the chat template ends an answer with no control token and the tokenizer has no "
                "eos_token; set eos_token in tokenizer_config.json"
            )
        return cast(int, self.tokenizer.eos_token_id)

    def _fingerprint(self) -> str:
        state = [
            ALGORITHM_VERSION,
            self.tokenizer.backend_tokenizer.to_str(),
            self.tokenizer.special_tokens_map,
            self.template,
        ]
        return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()

    def _check_faithful(self) -> None:
        """Compares ids with the tokenizer's own, on text that spells no control token."""
        probe = [
            {"role": "user", "content": "Hello there"},
            {"role": "assistant", "content": _PROBE},
        ]
        rendered = self._apply(probe, None, False)
        expected = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if self.encode(probe) != expected:
            raise UserError(
                f"{self.tokenizer.name_or_path}: this tokenizer matches control tokens in a way "
                "that cannot be kept safe from text here; please report the model"
            )


@dataclass(frozen=True)
class _Rendered:
    """Spelled texts of prompt, chosen and rejected conversation, each in one part or two."""

    parts: list[tuple[str, ...]]
    spelled_control: bool


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
    return Chat(load_tokenizer(path), template)


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


def _own_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    template = cast(str | dict[str, str] | None, tokenizer.chat_template)
    if isinstance(template, dict):
        # Several named templates; one without tools refuses pairs that have them (see _render).
        template = template.get("default")
    if not template:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; name a Jinja file with "
            "data.chat_template, the one that the model was trained with"
        )
    return template


def _function_names(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Iterator[str]:
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return (entry["function"]["name"] for entry in [*tools, *calls])


def _or_raise(ids: np.ndarray | BadPair) -> np.ndarray:
    if isinstance(ids, BadPair):
        raise ids
    return ids


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
