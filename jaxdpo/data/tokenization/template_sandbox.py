"""Sandbox for chat templates: out of reach of Python, and bounded in time and size.

A template comes with a model, from anyone. Jinja's sandbox keeps it from the interpreter; here a
rendering also has a budget that every round of a loop, call and large value is paid from. It is
counted and not timed, so that what is refused is the same on every machine and in any thread.

Filters, functions and blocks are those that `transformers` gives its templates, and write the same
text; only the date is fixed and a random choice is not random.
"""

import functools
import json
import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a rendering may spend: 1 for each character or item of a large value, and more for each round
# of a loop and each call. A conversation as long as the longest line is copied eight times from it;
# a loop that does nothing uses it up in seconds.
BUDGET = 2**27
_ROUND, _CALL = 32, 256
# Smaller texts are paid for by the rounds and calls that make them.
_SMALL = 4096
_MOST_BITS = 4096
# Filters of Jinja that make much out of little: each is paid for before it runs.
_COSTLY = ("batch", "center", "indent", "pprint", "slice", "truncate", "urlize", "wordwrap")
_COSTLY += ("xmlattr",)
# `urlize` writes attributes around a link and `pprint` indents each item: at most so many
# characters for one of the input.
_MARKUP = 64
_WIDE = re.compile(r"\d{4}")
# A template that writes today's date would give other tokens every day, and a run that restarts
# other data. It gets the date that Llama 3's templates have by default.
NOW = datetime(2024, 7, 26)
# What a template does to its input can fail in any of these ways; jinja2's own is the usual one.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


class TemplateLimit(jinja2.TemplateRuntimeError):
    """A template that would take too long, or write too much."""


class _Code(CodeGenerator):
    """Jinja's own code, but that new values and rounds of loops go by the environment."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        rounds = nodes.EnvironmentAttribute("rounds")
        node.iter = nodes.Call(rounds, [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._paid(super().visit_Concat, node, frame)

    def visit_Add(self, node: nodes.Add, frame: Frame) -> None:
        # A sum is paid for as a whole: it is no longer than what the template names in it.
        self._paid(self._sum, node, frame)

    def _sum(self, node: nodes.Expr, frame: Frame) -> None:
        if isinstance(node, nodes.Add):
            self.write("(")
            self._sum(node.left, frame)
            self.write(" + ")
            self._sum(node.right, frame)
            self.write(")")
        else:
            self.visit(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._paid(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._paid(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._paid(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _paid(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.paid(")
        visit(node, frame)
        self.write(")")


class _Generation(Extension):
    """`{% generation %}`, which marks what the assistant writes, and writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block as in transformers: what is set inside does not reach outside.
        block = nodes.CallBlock(self.call_method("written"), [], [], body)
        return block.set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        """Returns what stands in the block."""
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget for the rendering at hand in each thread."""

    code_generator_class = _Code
    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        # Each thread renders by itself, and spends its own.
        self.budget = threading.local()
        for name in _COSTLY:
            self.filters[name] = self._paid_filter(name, self.filters[name])
        # Random text has no place in training data.
        del self.globals["lipsum"]
        self.filters |= {
            "tojson": self._to_json,
            "format": lambda text, *values, **named: self._format(str(text), values or named),
            "replace": self._replace,
            "join": self._join,
            "random": _first,
        }
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
            "namespace": _Namespace,
        }

    def spend(self, amount: int) -> None:
        """Takes from the budget of the rendering.

        Raises:
          TemplateLimit: If there is not so much left.
        """
        self.budget.left = getattr(self.budget, "left", BUDGET) - amount
        if self.budget.left < 0:
            raise TemplateLimit(
                f"it would go through more than {BUDGET // _ROUND:,} rounds of loops or write more "
                f"than {BUDGET:,} characters"
            )

    def rounds(self, items: Any) -> Any:
        """Returns what a loop goes through, paid for by its length."""
        if not hasattr(items, "__len__"):
            items = list(items)
        self.spend(_ROUND * (1 + len(items)))
        return items

    def paid(self, value: Any) -> Any:
        """Returns a new value, paid for by its size."""
        if type(value) is not str or len(value) > _SMALL:
            self._size(value)
        return value

    def _paid_filter(self, name: str, jinjas: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a filter of Jinja that looks at what it could make before it does."""
        # Some get the environment, or the context that they are evaluated in, before the value.
        at = 1 if hasattr(jinjas, "jinja_pass_arg") else 0

        @functools.wraps(jinjas)
        def paid(*args: Any, **kwargs: Any) -> Any:
            value, *given = [*args[at:], *kwargs.values()]
            if name in ("batch", "slice"):
                value = self.rounds(value)
            self._spend_on_filter(name, value, given)
            return self.paid(jinjas(*args[:at], value, *args[at + 1 :], **kwargs))

        return paid

    def _spend_on_filter(self, name: str, value: Any, given: list[Any]) -> None:
        size = self._size(value)
        numbers = int(sum(abs(each) for each in given if isinstance(each, int | float)))
        texts = sum(len(each) for each in given if isinstance(each, str))
        if name == "indent":
            lines = 1 + str(value).count("\n")
            self.spend(lines * (numbers + texts))
        elif name == "wordwrap":
            # At a width of 1 there is a line break after each character.
            self.spend(size * (1 + texts))
        elif name in ("pprint", "urlize", "xmlattr"):
            self.spend(size * (_MARKUP + texts))
        else:
            self.spend(numbers + texts)

    def _strftime_now(self, form: str) -> str:
        self._check_widths(form)
        return NOW.strftime(form)

    def _size(self, value: Any) -> int:
        """Returns how many characters and items are in a value, which are paid for."""
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, dict):
            size = sum(self._size(key) + self._size(item) for key, item in value.items())
        elif isinstance(value, list | tuple):
            size = sum(map(self._size, value))
        else:
            return 1
        self.spend(size + 1)
        return size + 1

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls what a template calls, after looking at what it could make.

        Args:
          context: Jinja's context of the rendering.
          obj: What is called.
          args: Positional arguments.
          kwargs: Keyword arguments.

        Raises:
          TemplateLimit: If the result would be too long.
        """
        if obj == self.rounds:
            return self.rounds(*args)
        self.spend(_CALL)
        # What is called may copy its arguments as often as it likes; methods of text say how often.
        given = [*args, *kwargs.values()]
        # Jinja wraps a text's `format`.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            self._check_method(owner, obj.__name__, given)
        else:
            self._size(given)
        return self.paid(super().call(context, obj, *args, **kwargs))

    def _check_method(self, text: str, name: str, given: list[Any]) -> None:
        numbers = [abs(value) for value in given if isinstance(value, int)]
        if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
            self.spend(len(text) * max([1, *numbers]) + sum(numbers))
        elif name in ("format", "format_map", "translate"):
            self._check_widths(text)
            self.spend(len(text) * self._size(given) * max([1, *numbers]))
        elif name == "replace" and len(given) > 1:
            self.spend(_replaced(text, *given[:2]))
        elif name == "join" and given:
            self.spend(len(text) * len(given[0]) + self._size(list(given[0])))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `*`, `**` and `%`, after looking at what they could make.

        Args:
          context: Jinja's context of the rendering.
          operator: One of `intercepted_binops`.
          left: Left operand.
          right: Right operand.

        Raises:
          TemplateLimit: If the result would be too long.
        """
        if operator == "%" and isinstance(left, str):
            return self._format(left, right)
        # Python computes powers to the last digit: 9 ** 9 ** 9 would never come to an end.
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else 0
            if max(bits, left.bit_length() + right.bit_length()) > _MOST_BITS:
                raise TemplateLimit(f"it would make a number of more than {_MOST_BITS} bits")
        elif operator == "*":
            times = left if isinstance(left, int) else right
            value = right if isinstance(left, int) else left
            self.spend(self._size(value) * max(times, 0) if isinstance(times, int) else 0)
        return self.paid(super().call_binop(context, operator, left, right))

    def _format(self, text: str, values: Any) -> str:
        self._check_widths(text)
        self.spend(len(text) * self._size(values))
        return text % values

    def _check_widths(self, text: str) -> None:
        if _WIDE.search(text):
            raise TemplateLimit(f"it would pad by more than 999 characters, with {text[:60]!r}")

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        self.spend(_replaced(str(text), str(old), str(new)))
        return str(text).replace(str(old), str(new), count)

    def _join(self, items: Any, between: str = "", attribute: str | int | None = None) -> str:
        found = self.rounds(items)
        if attribute is not None:
            found = [self.getitem(item, attribute) for item in found]
        texts = [item if isinstance(item, str) else str(self.paid(item)) for item in found]
        self.spend(len(texts) * len(between) + sum(map(len, texts)))
        return between.join(texts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self.spend(self._size(value) * (1 + abs(indent or 0)))
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that reach into Python."""

    def __init__(self, *given: Any, **attributes: Any) -> None:
        super().__init__(*given, **attributes)
        for name in dict(*given, **attributes):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace.{name}: names begin with a letter")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _first(items: Any) -> Any:
    """Chooses an item where Jinja draws one: the same record must give the same tokens."""
    return next(iter(items), "")


def _replaced(text: str, old: str, new: str) -> int:
    """Returns the length of a text after a replacement."""
    return len(text) + text.count(old) * len(new)


_ENVIRONMENT = _Environment()


class Template:
    """A compiled template.

    Attributes:
      literals: Every text that stands in the template itself, comments aside, joined by NUL.
      names: Fields of messages, among other names, that the template may look at.

    Raises:
      jinja2.TemplateError: If the source is no template.
    """

    def __init__(self, source: str):
        self._template = _ENVIRONMENT.from_string(source)
        self._globals = dict(self._template.globals)
        tree = _ENVIRONMENT.parse(source)
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        constants = [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
        self.literals = "\0".join([*texts, *constants])
        self.names = frozenset(node.attr for node in tree.find_all(nodes.Getattr)) | {*constants}

    def render(self, variables: dict[str, Any]) -> str:
        """Returns the text that the template writes.

        Raises:
          TemplateLimit: If it would take too long or write too much.
          Exception: Whatever else goes wrong in it.
        """
        # Anew for each rendering: what another conversation has spent must not refuse this one.
        _ENVIRONMENT.budget.left = BUDGET
        pieces: list[str] = []
        # Without this, Jinja copies its globals from a chain of dictionaries, which takes longer
        # than the rendering.
        context = self._template.new_context({**self._globals, **variables}, shared=True)
        for piece in self._template.root_render_func(context):
            if len(piece) > _SMALL:
                _ENVIRONMENT.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)
