"""Criteria by configuration: a built-in one, a function of the user's own, or an LLM judge.

    criteria:
      - {name: word_limit, limit: from_prompt}
      - {function: "my_module:my_score"}
      - {judge: {instructions: "The answer is polite.", model: gpt-5}, label: polite}

A function is `score(messages, completion, metadata) -> Judgement`. It is also given those of
`tools`, `tool_calls` and `reference` (the data set's own answer) that it has parameters for.
"""

import hashlib
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxdpo.cli.settings import checked, read_yaml
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.criteria import builtin as checks
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement
from jaxdpo.evaluation.judges.client import JudgeConfig
from jaxdpo.evaluation.judges.llm import judge_criterion

# A user's own function.
Score = Callable[..., Judgement]
# Fields of an example that a function is given if it has a parameter of that name. Functions that
# were written before there were these fields keep working.
_BY_NAME = ("tools", "tool_calls", "reference")


class Function(checks.Check):
    """A function of the user's own."""

    function: str = Field(pattern=r"^[\w.]+:\w+$", description="module:name, importable from here")


class Judge(checks.Check):
    """An LLM judge."""

    judge: JudgeConfig = Field(description="the judge")


Ready = (
    checks.Limit
    | checks.Regex
    | checks.Contains
    | checks.Json
    | checks.Equals
    | checks.Extracted
    | checks.Similarity
    | checks.ToolCalls
)
Spec = Function | Judge | Ready
READY: dict[str, type[Ready]] = {
    "word_limit": checks.Limit,
    "sentence_limit": checks.Limit,
    "token_limit": checks.Limit,
    "regex": checks.Regex,
    "contains": checks.Contains,
    "excludes": checks.Contains,
    "json": checks.Json,
    "equals": checks.Equals,
    "extracted": checks.Extracted,
    "similarity": checks.Similarity,
    "tool_calls": checks.ToolCalls,
}


def check_named(spec: str | dict[str, Any] | Spec) -> Spec:
    """Reads a criterion's configuration: `word_limit`, `module:name`, or fields.

    Raises:
      UserError: For an unknown criterion, or a field that it does not have.
    """
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, str):
        spec = {"function" if ":" in spec else "name": spec}
    if isinstance(spec, dict) and len({"name", "function", "judge"} & set(spec)) == 1:
        if "function" in spec:
            return checked(Function, spec, "criterion function: ")
        if "judge" in spec:
            return checked(Judge, spec, "criterion judge: ")
        name = spec["name"]
        if name in READY:
            return checked(READY[name], spec, f"criterion {name}: ")
        raise UserError(
            f"criterion {name!r}: there is none of this name{nearest(str(name), READY)}; there "
            f"are {', '.join(READY)}"
        )
    raise UserError(
        f"criterion {spec!r}: write {{name: …}}, {{function: module:name}} or {{judge: {{…}}}}"
    )


def criterion_named(spec: str | dict[str, Any] | Spec) -> Criterion:
    """Makes the criterion that a configuration names.

        short = criterion_named({"name": "word_limit", "limit": 5})
        short.score(messages, "At 9.").passed  # True

    Raises:
      UserError: If there is no such criterion, function or judge.
    """
    check = check_named(spec)
    if isinstance(check, Judge):
        return judge_criterion(check.judge, label_of(check))
    judge = _function_judge(check.function) if isinstance(check, Function) else check.judge
    return Criterion(label_of(check), partial(_each, judge))


def label_of(check: Spec) -> str:
    """Returns the name of a criterion's judgements."""
    if check.label is not None:
        return check.label
    if isinstance(check, Function):
        return check.function.rpartition(":")[2]
    return "judge" if isinstance(check, Judge) else check.name


def source_digest(check: Spec) -> str | None:
    """Returns a digest of a function's source code; None for other criteria.

    None, too, for a function whose source is not at hand, such as one written in C.
    """
    if not isinstance(check, Function):
        return None
    try:
        source = inspect.getsource(_imported(check.function))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _each(
    judge: Callable[[Example], Judgement], examples: Sequence[Example]
) -> Iterator[Judgement]:
    # Lazily: a judgement is written before the next answer is judged.
    return map(judge, examples)


def _function_judge(path: str) -> Callable[[Example], Judgement]:
    score = _imported(path)
    try:
        wanted = [name for name in _BY_NAME if name in inspect.signature(score).parameters]
    except (TypeError, ValueError):  # a callable without a signature
        wanted = []

    def judge(example: Example) -> Judgement:
        more = {name: getattr(example, name) for name in wanted}
        judgement = score(example.messages, example.completion, example.metadata, **more)
        if not isinstance(judgement, Judgement):
            raise UserError(
                f"the criterion {path} returned {judgement!r}; return a "
                "jaxdpo.evaluation.judgement.Judgement"
            )
        return judgement

    return judge


def _imported(path: str) -> Score:
    # The current folder is on the path for `python -m`, so a user's file beside the data is found.
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"criterion {path}: {module} cannot be imported: {error}") from error
    except AttributeError:
        raise UserError(f"criterion {path}: {module} has no {name}") from None


def _read(given: Any) -> tuple[Spec, ...]:
    """Reads one specification, a list of them, or a YAML file with a list under `criteria`."""
    if isinstance(given, str) and given.endswith((".yaml", ".yml")):
        given = read_yaml(Path(given).expanduser()).get("criteria")
    listed = given if isinstance(given, list | tuple) else [given]
    found = tuple(check_named(spec) for spec in listed)
    label, count = Counter(map(label_of, found)).most_common(1)[0] if found else ("", 0)
    if count != 1:
        raise UserError(
            f"criteria: {count} are called {label!r}; give each a label of its own"
            if found
            else "criteria: there are none; name at least one"
        )
    return found


# The type of a configuration's field that takes any of the above.
Criteria = Annotated[tuple[Spec, ...], BeforeValidator(_read)]
