"""Conversations → text, by a chat template, in which only the template's control tokens count."""

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jinja2

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.jsonl import strings
from jaxdpo.data.reading.messages import REASONING_KEYS
from jaxdpo.data.tokenization.control_tokens import WALL, ControlTokens, without_spellings
from jaxdpo.data.tokenization.template_sandbox import Template, TemplateLimit
from jaxdpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What a template does to its input can fail in any of these ways; jinja2's own is the usual one.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
PROBE = "Probe 7Qx1, in two\nlines."
# A template that writes today's date would give other tokens every day, and a run that restarts
# other data. It gets the date that Llama 3's templates have by default.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24')"
    " | replace('%A', 'Friday') | replace('%a', 'Fri') | replace('%H', '00')"
    " | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}{{ '' }}"
)


class Rendered(NamedTuple):
    """A conversation as text, its control tokens spelled for `ControlTokens.encode`.

    Attributes:
      text: The spelled text.
      spelled_control: Whether any text in the messages spelled a control token.
    """

    text: str
    spelled_control: bool


class ChatTemplate:
    """A chat template that text in messages cannot reach.

    Attributes:
      source: The template.
      dateless: The same, writing a fixed date where it writes today's.
      end_token: What ends an assistant's message.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", source: str | None, controls: ControlTokens
    ):
        """Looks at a template, or without one at the tokenizer's own.

        Raises:
          UserError: If there is none, or it cannot render a question and an answer.
        """
        self._eos_token = cast(str | None, tokenizer.eos_token)
        self._variables = {**tokenizer.special_tokens_map, "documents": None}
        self._controls = controls
        self.source = _own_template(tokenizer) if source is None else source
        dated = "strftime_now" in self.source
        self.dateless = _FIXED_DATE + self.source if dated else self.source
        try:
            self._template = Template(self.dateless)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template cannot be used: {error}") from error
        self.end_token = self._find_end()
        self._spelled_end = controls.spell(self.end_token)
        self._lost_reasoning = [key for key in REASONING_KEYS if key not in self.source]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        prompt: bool,
        kwargs: Mapping[str, Any] = NO_KWARGS,
        harmless: bool | None = None,
    ) -> Rendered:
        """Renders a conversation, as `control_tokens` describes.

        Args:
          messages: `{"role": ..., "content": ...}` each.
          tools: Function definitions.
          prompt: Whether to open the assistant's next message.
          kwargs: Further variables for the template.
          harmless: What `harmless` says of messages, tools and kwargs, where that is known.

        Raises:
          BadPair: If the template refuses the messages, leaves out a function, a call or the
            reasoning, or rewrites text that spells a control token.
        """
        self._check_reasoning(messages)
        said = (list(messages), list(tools), dict(kwargs))
        rendered = self._apply(*said, prompt)
        for name in _function_names(messages, tools):
            if name not in rendered and json.dumps(name, ensure_ascii=False)[1:-1] not in rendered:
                raise BadPair(
                    "tools-not-rendered",
                    f"the chat template leaves out the function {show(name)}; use one that writes "
                    "tools and tool calls, or remove them",
                )
        if self.harmless(*said) if harmless is None else harmless:
            return Rendered(self._controls.spell(rendered), False)
        walled = (
            [{**self._wall(message), "role": message["role"]} for message in messages],
            self._wall(said[1]),
            self._wall(said[2]),
        )
        if walled == said:
            return Rendered(self._controls.spell(rendered), False)
        spelled = [text for _, text in strings(said) if self._controls.pattern.search(text)]
        with_walls = self._apply(*walled, prompt)
        if with_walls.replace(WALL, "") == rendered:
            return Rendered(self._controls.spell(with_walls), bool(spelled))
        # The template looked at the walls. That is no harm if they kept nothing apart.
        tokens = self._controls.pattern.findall
        if spelled or tokens(rendered) != tokens(with_walls):
            raise BadPair(
                "control-text",
                f"{show(spelled[0] if spelled else rendered)} spells a control token, and the chat "
                "template rewrites text that does, so the two cannot be told apart; remove it",
            )
        return Rendered(self._controls.spell(rendered), False)

    def ended(self, spelled: str) -> bool:
        """Whether a rendering ends in the end token, white space and control tokens aside."""
        _, end, after = spelled.rpartition(self._spelled_end)
        return end != "" and not without_spellings(after).strip()

    def harmless(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        kwargs: Mapping[str, Any],
    ) -> bool:
        """Whether it is plain at once that nothing in a conversation spells a control token."""
        # The roles are those that this project allows, not the user's words.
        words = [{k: v for k, v in message.items() if k != "role"} for message in messages]
        return all(map(self._harmless, (words, list(tools), dict(kwargs))))

    def _harmless(self, value: Any) -> bool:
        """Whether it is plain at once that no text in here needs walls."""
        if isinstance(value, str):
            return self._controls.harmless(value)
        if isinstance(value, dict):
            return all(map(self._harmless, value.values())) and not any(
                map(self._controls.pattern.search, value)
            )
        return not isinstance(value, list) or all(map(self._harmless, value))

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

    def _check_reasoning(self, messages: Sequence[Message]) -> None:
        for key in self._lost_reasoning:
            for message in messages:
                if message.get(key):
                    raise BadPair(
                        "reasoning-not-rendered",
                        f"the chat template does not know the field {key}, which would be left "
                        "out; use one that does, or remove it",
                    )

    def _apply(self, messages: Any, tools: Any, kwargs: Any, prompt: bool) -> str:
        variables = {
            **self._variables,
            "messages": [_with_reasoning(message) for message in messages],
            "tools": tools or None,
            "add_generation_prompt": prompt,
            **kwargs,
        }
        try:
            return self._template.render(variables)
        except TemplateLimit as error:
            raise BadPair(
                "template-limit",
                f"the chat template does not come to an end with these messages: {error}; use "
                "another template (data.chat_template)",
            ) from error
        except _TEMPLATE_ERRORS as error:
            raise BadPair("template", f"the chat template refuses the messages: {error}") from error

    def _find_end(self) -> str:
        """The first control token after an assistant's text, or else the end of text."""
        probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
        try:
            rendered = self._apply(probe, None, {}, False)
        except BadPair as bad:
            raise UserError(f"the chat template cannot be used: {bad.reason}") from bad
        if PROBE not in rendered:
            raise UserError("the chat template does not write the assistant's answer; use another")
        found = self._controls.pattern.search(rendered, rendered.rindex(PROBE) + len(PROBE))
        end = found[0] if found else self._eos_token
        if end is None:
            raise UserError(
                "the chat template ends an answer with no control token and the tokenizer has no "
                "eos_token; set eos_token in tokenizer_config.json"
            )
        return end


def _with_reasoning(message: Message) -> Message:
    """A message whose reasoning goes by every name that templates look for, as in transformers."""
    if message.keys().isdisjoint(REASONING_KEYS):
        return message
    reasoning = next(message[key] for key in REASONING_KEYS if key in message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


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
