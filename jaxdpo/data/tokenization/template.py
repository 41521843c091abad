"""Conversations → text, by a chat template whose control tokens no message can forge."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jinja2

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.jsonl import strings
from jaxdpo.data.reading.messages import REASONING_KEYS
from jaxdpo.data.tokenization.control_tokens import WALL, ControlTokens, without_spellings
from jaxdpo.data.tokenization.ends import PROBE, end_of_call, end_of_text
from jaxdpo.data.tokenization.reasoning import (
    Thought,
    find_reasoning,
    with_reasoning,
    without_thought,
)
from jaxdpo.data.tokenization.template_sandbox import TEMPLATE_ERRORS, Template, TemplateLimit
from jaxdpo.data.tokenization.tool_calls import (
    Form,
    forms,
    function_names,
    is_named,
    printed_by_python,
)
from jaxdpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
# Stand for the tags of reasoning in content that the template would remove if it saw them.
_OPENING, _CLOSING = "\ufdd3", "\ufdd4"
_FIRST_FORM = forms(())[0]
_ASKED = {"role": "user", "content": "Hello"}


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
      source: The template; where a tokenizer has another one for tools, that one follows.
      controls: The control tokens: special ones, and those that the template writes.
      reasoning: The form in which it takes reasoning.
      end_token: The token that ends an answer of text.
      end_of_call: The token that ends an answer which calls a tool.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        sources: Sequence[str],
        known_ends: Collection[str],
    ):
        """Looks at a template.

        Args:
          tokenizer: The tokenizer that it is for.
          sources: The template, and perhaps another for conversations with tools.
          known_ends: Tokens that end answers, by what is known of the model.

        Raises:
          UserError: If it cannot render a question and an answer.
        """
        self._variables = {**tokenizer.special_tokens_map, "documents": None}
        self.source = "\0".join(sources)
        try:
            self._template, *others = map(Template, sources)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template cannot be used: {error}") from error
        self._tool_template = others[0] if others else self._template
        # First, so that a template that does not come to an end is tried only once.
        self._check_usable()
        both = (self._template, *others)
        literals = "\0".join(template.literals for template in both)
        names = frozenset().union(*(template.names for template in both))
        self.reasoning = find_reasoning(self._probe, names, literals)
        written = [literals, *self._probes(), *(self.reasoning.tags or ())]
        self.controls = ControlTokens(tokenizer.backend_tokenizer, "\0".join(written), known_ends)
        self._find_ends(cast(str | None, tokenizer.eos_token), known_ends)

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
        # The last message is what is learnt; those before it are history, in which templates may
        # leave the reasoning out, as they do when the model is asked.
        answer = None if prompt else len(messages) - 1
        plain = _Said(self._shaped(messages, answer, _as_it_is), list(tools), dict(kwargs))
        rendered, form = self._render_in_some_form(plain, prompt)
        self._check_written(messages, answer, rendered)
        if self.harmless(messages, tools, kwargs) if harmless is None else harmless:
            return Rendered(self._spell(rendered), False)
        # Rendered once more with walls, and compared: what a template does to text that it has
        # looked at cannot be told from the outside in any other way.
        walled = _Said(
            self._shaped(messages, answer, self.controls.wall),
            self._wall(plain.tools),
            self._wall(plain.kwargs),
        )
        if walled == plain:
            return Rendered(self._spell(rendered), False)
        words = (self._words(messages), plain.tools, plain.kwargs)
        spelled = [text for _, text in strings(words) if self.controls.pattern.search(text)]
        with_walls = self._apply(walled, prompt, form)
        if with_walls.replace(WALL, "") == rendered:
            return Rendered(self._spell(with_walls), bool(spelled))
        # The template looked at the walls. That is no harm if they kept nothing apart.
        tokens = self.controls.pattern.findall
        if spelled or tokens(rendered) != tokens(with_walls):
            raise BadPair(
                "control-text",
                f"{show(spelled[0] if spelled else rendered)} spells a control token, and the chat "
                "template rewrites text that does, so the two cannot be told apart; remove it",
            )
        return Rendered(self._spell(rendered), False)

    def plain(self, messages: Sequence[Message]) -> str:
        """Renders messages as `transformers` does: whatever looks like a control token is one."""
        return self._apply(_Said(list(messages), [], {}), False, _FIRST_FORM)

    def closed(self, spelled: str) -> tuple[str, bool]:
        """Returns a rendering up to the end of its last answer, and whether it has an end there.

        White space and control tokens may follow an answer. The first end among them is the
        answer's; a template may write another, that of the whole conversation.
        """
        end = self._ends.search(spelled, len(self.unclosed(spelled)))
        return (spelled[: end.end()], True) if end else (spelled, False)

    def unclosed(self, spelled: str) -> str:
        """Returns a rendering without the white space and control tokens that it ends in."""
        end = len(spelled)
        while end and not without_spellings(spelled[end - 1]).strip():
            end -= 1
        return spelled[:end]

    def harmless(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        kwargs: Mapping[str, Any],
    ) -> bool:
        """Tells at once, where that is plain, that nothing said spells a control token.

        Args:
          messages: `{"role": ..., "content": ...}` each.
          tools: Function definitions.
          kwargs: Further variables for the template.
        """
        # The roles are those that this project allows, not the user's words.
        words = [{k: v for k, v in message.items() if k != "role"} for message in messages]
        return all(map(self._harmless, (words, list(tools), dict(kwargs))))

    def _harmless(self, value: Any) -> bool:
        if isinstance(value, str):
            return self.controls.harmless(value)
        if isinstance(value, dict):
            return all(map(self._harmless, value.values())) and not any(
                map(self.controls.pattern.search, value)
            )
        return not isinstance(value, list) or all(map(self._harmless, value))

    def _wall(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.controls.wall(value)
        if isinstance(value, dict):
            # Templates look fields up by name: a name is touched only if it spells a control token.
            return {
                self._wall(key) if self.controls.pattern.search(key) else key: self._wall(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._wall(item) for item in value]
        return value

    def _shaped(
        self, messages: Sequence[Message], answer: int | None, text: Callable[[str], str]
    ) -> list[Message]:
        """Returns messages as the template gets them, each text in them passed through `text`."""
        shaped = []
        for index, message in enumerate(messages):
            thought = self.reasoning.split(message)
            rest = without_thought(message) if thought else message
            said = rest if text is _as_it_is else {**self._wall(rest), "role": message["role"]}
            if thought is not None:
                said = {**said, **self._thinking(thought, index == answer, text)}
            shaped.append(said)
        return shaped

    def _thinking(self, thought: Thought, learnt: bool, text: Callable[[str], str]) -> Message:
        """Returns content, and perhaps a field, in which reasoning reaches the rendering.

        The tags are the assistant's own and get no walls; the text in them and after them does.
        """
        opening, closing = thought.opening, thought.closing
        if self.reasoning.treatment == "field":
            reasoning, answer = thought.reasoning.strip("\n"), thought.answer.lstrip("\n")
            return {"reasoning_content": text(reasoning), "content": text(answer)}
        if self.reasoning.treatment == "dropped" and learnt:
            # The template would find the tags and remove what is in them.
            tags = self.reasoning.tags
            assert tags is not None
            opening = opening.replace(tags[0], _OPENING)
            closing = closing.replace(tags[1], _CLOSING)
        return {"content": opening + text(thought.reasoning) + closing + text(thought.answer)}

    def _words(self, messages: Sequence[Message]) -> list[Any]:
        """Returns all that messages say, but for the tags of reasoning."""
        words: list[Any] = []
        for message in messages:
            thought = self.reasoning.split(message)
            if thought is None:
                words.append(message)
            else:
                words += [without_thought(message), thought.reasoning, thought.answer]
        return words

    def _spell(self, rendered: str) -> str:
        spelled = self.controls.spell(rendered)
        if _CLOSING in spelled and self.reasoning.tags is not None:
            for held, tag in zip((_OPENING, _CLOSING), self.reasoning.tags, strict=True):
                spelled = spelled.replace(held, self.controls.spell(tag))
        return spelled

    def _check_reasoning(self, messages: Sequence[Message]) -> None:
        if self.reasoning.field or self.reasoning.tags is not None:
            return
        for message in messages:
            key = next((key for key in REASONING_KEYS if message.get(key)), None)
            if key is not None:
                raise BadPair(
                    "reasoning-not-rendered",
                    f"the chat template does not know the field {key}, which would be left "
                    "out; use one that does, or remove it",
                )

    def _check_written(
        self, messages: Sequence[Message], answer: int | None, rendered: str
    ) -> None:
        """Refuses an answer whose reasoning the template leaves out."""
        if answer is None or messages[answer]["role"] != "assistant":
            return
        thought = self.reasoning.split(messages[answer])
        given = [thought.reasoning] if thought else map(messages[answer].get, REASONING_KEYS)
        for reasoning in given:
            if reasoning and reasoning.strip() not in rendered:
                raise BadPair(
                    "reasoning-not-rendered",
                    f"the chat template leaves the reasoning {show(reasoning.strip())} out of this "
                    "answer; set chat_template_kwargs.enable_thinking if it has that, use another "
                    "template, or remove the reasoning",
                )

    def _render_in_some_form(self, said: "_Said", prompt: bool) -> tuple[str, Form]:
        """Renders tool calls in the first form that the template writes them in, and tells it."""
        # A name may be written with JSON's escapes; nothing else stands for a function.
        names = list(function_names(said.messages, said.tools))
        failure: BadPair | None = None
        lost: str | None = None
        printed: tuple[str, Form] | None = None
        for form in forms(said.messages):
            try:
                rendered = self._apply(said, prompt, form)
            except BadPair as bad:
                if bad.code == "template-limit":
                    raise
                failure = failure or bad
                continue
            missing = next((name for name in names if not is_named(name, rendered)), None)
            if missing is not None:
                lost = lost or missing
            elif not printed_by_python(said.messages, rendered):
                return rendered, form
            else:
                printed = printed or (rendered, form)
        # Rather as transformers renders it than not at all: a template may well print an object.
        if printed is not None:
            return printed
        if lost is not None:
            raise BadPair(
                "tools-not-rendered",
                f"the chat template leaves out the function {show(lost)}; use one that writes "
                "tools and tool calls, or remove them",
            )
        assert failure is not None
        raise failure

    def _apply(self, said: "_Said", prompt: bool, form: Form) -> str:
        variables = {
            **self._variables,
            "messages": [form(with_reasoning(message)) for message in said.messages],
            "tools": said.tools or None,
            "add_generation_prompt": prompt,
            **said.kwargs,
        }
        template = self._tool_template if said.tools else self._template
        try:
            return template.render(variables)
        except TemplateLimit as error:
            raise BadPair(
                "template-limit",
                f"the chat template does not come to an end with these messages: {error}; use "
                "another template (data.chat_template)",
            ) from error
        except TEMPLATE_ERRORS as error:
            raise BadPair("template", f"the chat template refuses the messages: {error}") from error

    def _check_usable(self) -> None:
        try:
            rendered = self.plain([_ASKED, {"role": "assistant", "content": PROBE}])
        except BadPair as bad:
            raise UserError(f"the chat template cannot be used: {bad.reason}") from bad
        if PROBE not in rendered:
            raise UserError("the chat template does not write the assistant's answer; use another")

    def _probe(
        self, messages: list[Message], prompt: bool = False, kwargs: Mapping[str, Any] = NO_KWARGS
    ) -> str | None:
        """Renders messages; returns None where the template refuses them."""
        try:
            return self._render_in_some_form(_Said(messages, [], dict(kwargs)), prompt)[0]
        except BadPair:
            return None

    def _probes(self) -> list[str]:
        """Renders every role, for tokens that a template puts together (`'<|' + role + '|>'`)."""
        answered = [_ASKED, {"role": "assistant", "content": PROBE}]
        turns = [
            [{"role": "system", "content": PROBE}, _ASKED],
            [*answered, _ASKED],
            [*answered, {"role": "tool", "content": PROBE}],
        ]
        rendered = [self._probe(messages, prompt) for messages in turns for prompt in (True, False)]
        return [text for text in rendered if text is not None]

    def _find_ends(self, eos_token: str | None, known_ends: Collection[str]) -> None:
        # Only control tokens can be ends: what text may spell must not end an answer.
        tokens_in = self.controls.pattern.findall
        end = end_of_text(self._probe, tokens_in, known_ends) or eos_token
        if end is None:
            raise UserError(
                "the chat template ends an answer with no control token and the tokenizer has no "
                "eos_token; set eos_token in tokenizer_config.json"
            )
        self.end_token = end
        ends = {end, *known_ends}
        self.end_of_call = end_of_call(self._probe, tokens_in, ends) or end
        self._ends = re.compile("|".join(re.escape(self.controls.spell(each)) for each in ends))


class _Said(NamedTuple):
    """All that a template renders."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    kwargs: dict[str, Any]


def _as_it_is(text: str) -> str:
    return text
