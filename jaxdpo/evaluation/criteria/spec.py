"""Criteria by configuration: a ready one, a function of the user's own, or an LLM judge.

    criteria:
      - {name: word_limit, limit: from_prompt}
      - {function: "my_module:my_score"}
      - {judge: {instructions: "The answer is polite.", model: gpt-5}, label: polite}

A function is `score(messages, completion, metadata) -> Judgement`.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxdpo.cli.settings import checked, read_yaml
from jaxdpo.data.pairs import Message
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.criteria import builtin as checks
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement
from jaxdpo.evaluation.judges.client import JudgeConfig
from jaxdpo.evaluation.judges.llm import judge_criterion

Score = Callable[[Sequence[Message], str, Mapping[str, Any]], Judgement]


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
}


def check_named(spec: str | dict[str, Any] | Spec) -> Spec:
    """What a criterion's configuration says: `word_limit`, `module:name`, or fields.

    Raises:
      UserError: For one that there is not, or a field that it does not have.
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
    """The criterion that a configuration names, ready to judge.

        short = criterion_named({"name": "word_limit", "limit": 5})
        short.score(messages, "At 9.").passed  # True

    Raises:
      UserError: If there is no such criterion, function or judge.
    """
    check = check_named(spec)
    if isinstance(check, Judge):
        return judge_criterion(check.judge, label_of(check))
    score = _imported(check.function) if isinstance(check, Function) else check.score
    return Criterion(label_of(check), partial(_each, score))


def label_of(check: Spec) -> str:
    """What a criterion's judgements are known by."""
    if check.label is not None:
        return check.label
    if isinstance(check, Function):
        return check.function.rpartition(":")[2]
    return "judge" if isinstance(check, Judge) else check.name


def _each(score: Score, examples: Sequence[Example]) -> Iterator[Judgement]:
    for example in examples:
        judgement = score(*example)
        if not isinstance(judgement, Judgement):
            raise UserError(
                f"the criterion {score} returned {judgement!r}; return a "
                "jaxdpo.evaluation.judgement.Judgement"
            )
        yield judgement


def _imported(path: str) -> Score:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"criterion {path}: {module} cannot be imported: {error}") from error
    except AttributeError:
        raise UserError(f"criterion {path}: {module} has no {name}") from None


def _read(given: Any) -> tuple[Spec, ...]:
    """One specification, a list of them, or a YAML file that has a list under `criteria`."""
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
