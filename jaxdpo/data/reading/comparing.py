"""The forms that say which answer is better by a verdict, a score or a rank."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, NothingToLearn, kind, show
from jaxdpo.data.reading.asked import (
    Asked,
    RoleKeys,
    answer_in,
    asked_in,
    is_empty,
    role_of,
    with_system,
)
from jaxdpo.data.reading.columns import spelled
from jaxdpo.data.reading.pair_forms import Read, shared_turns
from jaxdpo.data.reading.said import Parts, Said, check_score, need

Scores = tuple[float, float]
_TEXT_KEYS = (
    *("response", "text", "content", "completion", "output", "messages", "answer"),
    *("generated_text", "value"),
)
_VALUE_KEYS = ("score", "overall_score", "rating", "reward")
_RANK_KEYS = ("rank", "ranking")
# Two answers stand in columns of one name with two of these at its end.
_SIDES = (("a", "b"), ("0", "1"), ("1", "2"), ("left", "right"))
_COMPARABLE = (
    *("response", "answer", "completion", "output", "conversation", "summary", "candidate"),
    *("reply", "generation", "human_ref", "text", "result"),
)
# Verdicts by number, as the data sets that have them document it: HelpSteer2's and 3's are below
# zero if the first answer is better.
_SIGNED = ("preference_strength", "overall_preference")


class Sides(NamedTuple):
    """The columns of two answers that are compared, and what each side is called there."""

    first: str
    second: str
    names: tuple[str, str]


def sides_of(keys: Mapping[str, Any]) -> Sides | None:
    """Finds two answers side by side: `response_a` and `response_b`, `answer_0` and `answer_1`, …

    Args:
      keys: The record, or its columns.
    """
    if keys.keys() >= {"answer_a", "answer_b"}:
        return Sides("answer_a", "answer_b", ("a", "b"))
    at = {spelled(key): key for key in keys}
    for first, second in _SIDES:
        for stem in _COMPARABLE:
            for joint in ("_", ""):
                names = f"{stem}{joint}{first}", f"{stem}{joint}{second}"
                if names[0] in at and names[1] in at:
                    return Sides(at[names[0]], at[names[1]], (first, second))
    return None


def compared(record: dict[str, Any], roles: RoleKeys) -> tuple[Read, Scores | None]:
    """Reads two answers and a verdict.

    Returns:
      The messages, and the scores of chosen and rejected where the record has them.

    Raises:
      NothingToLearn: If the verdict is a tie.
    """
    # Everything hangs on which two columns are compared; the verdict is read by their names.
    sides = sides_of(record)
    if sides is None:
        raise BadPair("missing-key", "two answers are missing, such as response_a and response_b")
    first_is_better, verdict_keys, scores = _verdict(record, roles, sides)
    asked = asked_in(record, roles)
    keys = (sides.first, sides.second) if first_is_better else (sides.second, sides.first)
    chosen, rejected = (answer_in(need(record, key)[0], key, asked) for key in keys)
    used = {*keys, *verdict_keys, *asked.used}
    # Arena's columns hold whole conversations, others only the answers.
    opens = any(role_of(answer[0]) not in ("assistant", None) for answer in (chosen, rejected))
    parts = shared_turns(chosen, rejected) if opens else Parts(asked.messages, chosen, rejected)
    if opens:
        used -= asked.used
    prompt, system_keys = with_system(list(parts.prompt), record, roles)
    if scores is not None and not first_is_better:
        scores = (scores[1], scores[0])
    return Read(parts._replace(prompt=prompt), frozenset(used | system_keys)), scores


_Verdict = tuple[bool, set[str], Scores | None]


def _verdict(record: dict[str, Any], roles: RoleKeys, sides: Sides) -> _Verdict:
    """Says whether the first answer is better, by which columns, and both scores if any."""
    scores, score_keys = _side_scores(record, sides)
    # Verdicts of known data sets go first: their numbers mean what their cards say.
    for key in _SIGNED:
        if key in record:
            check_score(record[key], key)
            return _decided(-record[key]), {key}, scores
    if spelled(sides.first) == "human_ref_a" and "labels" in record:
        # SHP: 1 if the first is preferred, though its columns are called A and B.
        if record["labels"] not in (0, 1):
            raise BadPair("verdict", f"labels is {show(record['labels'])}; write 1 or 0")
        return bool(record["labels"]), {"labels", *score_keys}, scores
    if "better_response_id" in record:
        return _named(record, "better_response_id", sides), {"better_response_id"}, scores
    if "winner_model_a" in record:
        wins = [record.get(f"winner_model_{side}") or 0 for side in ("a", "b")]
        return _decided(wins[0] - wins[1]), {"winner_model_a", "winner_model_b", "winner_tie"}, None
    for key in roles.get("preferred", ()):
        return _named(record, key, sides), {key}, scores
    # WebGPT has nothing but scores.
    if scores is not None:
        return _decided(scores[0] - scores[1]), set(score_keys), scores
    raise BadPair(
        "missing-key",
        f"nothing says which of {sides.first} and {sides.second} is better; set "
        "data.columns={preferred: …}",
    )


def _decided(difference: float) -> bool:
    if difference == 0:
        raise NothingToLearn("tie")
    return difference > 0


def _named(record: dict[str, Any], key: str, sides: Sides) -> bool:
    """Reads a verdict that names a side: by its letter or number, its column, its model or text."""
    # 1 may mean the first answer or the second. It is read only where the columns have numbers.
    value = record[key]
    said = spelled(str(value)) if isinstance(value, str | int) else None
    if said in ("tie", "draw", "both", "neither", "equal", "same", "none") or (
        isinstance(value, str) and value.lower().startswith(("tie", "both"))
    ):
        raise NothingToLearn("tie")
    for is_first, column, side in zip((True, False), sides[:2], sides.names, strict=True):
        others = {"a": "first", "b": "second"}
        prefixes = ("", "model_", "response_", "answer_", "assistant_", "completion_", "option_")
        named = {spelled(f"{prefix}{side}") for prefix in prefixes} | {spelled(column)}
        models = [record.get(f"{stem}_{side}") for stem in ("model", "model_name", "policy")]
        if said is not None and said in named | {others.get(side)}:
            return is_first
        if isinstance(value, str) and value in (record.get(column), *models):
            return is_first
    names = " or ".join(show(name) for name in sides.names)
    raise BadPair(
        "verdict",
        f"{key} is {show(value)}, which names neither {sides.first} nor {sides.second}; write "
        f'{names}, or "tie"',
    )


def _side_scores(record: dict[str, Any], sides: Sides) -> tuple[Scores | None, tuple[str, ...]]:
    at = {spelled(key): key for key in record}
    for stem in ("score", "rating", "reward"):
        names = [f"{stem}_{side}" for side in sides.names]
        if all(name in at for name in names):
            keys = tuple(at[name] for name in names)
            values = [record[key] for key in keys]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                return (float(values[0]), float(values[1])), keys
    return None, ()


class Ranked(NamedTuple):
    """One pair of a ranked list, and its scores where the list has scores and no ranks."""

    read: Read
    scores: Scores | None


class _Answer(NamedTuple):
    value: float
    said: list[Said]


def answers_key(record: dict[str, Any], roles: RoleKeys) -> str | None:
    """Finds the column that lists several answers."""
    return next((key for key in roles.get("answers", ()) if isinstance(record[key], list)), None)


def ranked(record: dict[str, Any], roles: RoleKeys, margin: float | None) -> list[Ranked]:
    """Reads several answers with a score or rank each.

    Args:
      record: The record.
      roles: Its columns by role.
      margin: Every two answers whose scores differ by this make a pair; None: the best and the
        worst.
    """
    given = answers_key(record, roles) or "completions"
    listed = need(record, given)[0]
    asked = asked_in(record, roles)
    # Without a prompt the error names the column that people most often have.
    if not asked.messages:
        need(record, "prompt")
    if not isinstance(listed, list) or len(listed) < 2:
        state = f"holds {len(listed)}" if isinstance(listed, list) else f"is {kind(listed)}"
        raise BadPair("ranked-short", f"{given} {state}; a preference needs at least 2")
    prompt, used = with_system(asked.messages, record, roles)
    used = used | asked.used | {given}
    if given == "output" and len(listed) == 2 and all(isinstance(each, str) for each in listed):
        # LLaMA-Factory's older preference files: the better answer is the first.
        first, second = (answer_in(each, f"output[{i}]", asked) for i, each in enumerate(listed))
        return [Ranked(Read(Parts(prompt, first, second), used), None)]
    values, by_rank, score_keys = _values(record, roles, listed, given)
    answers = [
        _Answer(float(value), answer_in(_text_of(item, f"{given}[{i}]"), f"{given}[{i}]", asked))
        for i, (value, item) in enumerate(zip(values, listed, strict=True))
    ]
    used |= score_keys
    return [
        Ranked(
            Read(Parts(prompt, high.said, low.said), used),
            None if by_rank else (high.value, low.value),
        )
        for high, low in _pairs_of(answers, margin)
    ]


def _values(
    record: dict[str, Any], roles: RoleKeys, listed: list[Any], given: str
) -> tuple[list[float], bool, set[str]]:
    """Finds a number for each answer, the higher the better.

    Returns:
      The numbers, whether they are ranks (turned round), and the columns they were read from.
    """
    for keys, turn in ((roles.get("scores", ()), 1), (roles.get("ranks", ()), -1)):
        key = next(iter(keys), None)
        # `rating` may be the list of scores, and `answers` may not be its own list of scores.
        if key is None or key == given:
            continue
        values = record[key]
        if not isinstance(values, list) or len(values) != len(listed):
            raise BadPair(
                "ranked-scores", f"{key} must be a list of {len(listed)}, one a completion"
            )
        for i, value in enumerate(values):
            check_score(value, f"the score of {given}[{i}]")
        return [turn * value for value in values], turn < 0, {key}
    # Ranks are read only if every answer has one and none has a score: 1 is the best rank and
    # the worst score.
    by_rank = all(
        isinstance(item, dict) and any(not is_empty(item.get(key)) for key in _RANK_KEYS)
        for item in listed
    ) and not any(item.get(key) is not None for item in listed for key in _VALUE_KEYS)
    names = _RANK_KEYS if by_rank else _VALUE_KEYS
    values = []
    for i, item in enumerate(listed):
        where = f"{given}[{i}]"
        value = _first(item, names, f"{where} has no score")
        check_score(value, f"the score of {where}")
        values.append(-value if by_rank else value)
    return values, by_rank, set()


def _text_of(item: Any, where: str) -> Any:
    if isinstance(item, dict) and "role" not in item:
        return _first(item, _TEXT_KEYS, f"{where} has no text")
    return item


def _pairs_of(answers: list[_Answer], margin: float | None) -> list[tuple[_Answer, _Answer]]:
    # Sorting is stable: of equals the first is taken, at either end.
    best = sorted(answers, key=lambda answer: -answer.value)
    if margin is None:
        worst = min(answers, key=lambda answer: answer.value)
        pairs = [(best[0], worst)] if best[0].value > worst.value else []
    else:
        pairs = [
            (high, low)
            for high, low in itertools.combinations(best, 2)
            if high.value - low.value >= margin
        ]
    if not pairs:
        how = "are equal" if margin is None else f"differ by less than {margin:g}"
        raise BadPair("no-preference", f"all scores {how}; drop the line")
    return pairs


def _first(item: Any, names: tuple[str, ...], problem: str) -> Any:
    for name in names:
        if isinstance(item, dict) and item.get(name) is not None:
            return item[name]
    raise BadPair("ranked-item", f"{problem}; write it as one of {', '.join(names)}")


class Rated(NamedTuple):
    """One answer with its score; the rows before and after may answer the same prompt.

    Attributes:
      asked: The prompt, with the columns it was read from.
      answer: The answer.
      score: The higher, the better.
      used: Its columns.
    """

    asked: Asked
    answer: list[Said]
    score: float
    used: frozenset[str]


def rated(record: dict[str, Any], roles: RoleKeys) -> Rated:
    """Reads an answer with a score, one a row: HelpSteer's form."""
    key = next(iter(roles.get("completion", ())), "response")
    score_key = next(iter(roles.get("score", ())), "score")
    answer, score = need(record, key, score_key)
    check_score(score, score_key)
    asked = asked_in(record, roles)
    if not asked.messages:
        need(record, "prompt")
    prompt, used = with_system(asked.messages, record, roles)
    whole = Asked(prompt, asked.used, asked.rendered)
    used = used | asked.used | {key, score_key}
    return Rated(whole, answer_in(answer, key, asked), float(score), used)


def pairs_of_rated(group: list[Rated], margin: float | None) -> list[tuple[Read, Scores, int]]:
    """Compares answers to one prompt: the best with the worst, or all that differ by a margin.

    Args:
      group: Rows that ask the same.
      margin: As in `ranked`.

    Returns:
      Each pair with its scores, and the number of the row in the group that has the better answer.

    Raises:
      NothingToLearn: If there is one row alone, or no two differ enough.
    """
    answers = [_Answer(each.score, [Said(str(i), None)]) for i, each in enumerate(group)]
    # A tie among rows is no mistake of the file, as it would be within one record.
    try:
        chosen = _pairs_of(answers, margin) if len(group) > 1 else []
    except BadPair:
        chosen = []
    if not chosen:
        raise NothingToLearn("alone" if len(group) == 1 else "tie")
    # The pair takes its other columns, and its place, from the row of the better answer.
    found = []
    for high, low in chosen:
        better, worse = (int(answer.said[0].field) for answer in (high, low))
        parts = Parts(group[better].asked.messages, group[better].answer, group[worse].answer)
        found.append((Read(parts, group[better].used), (high.value, low.value), better))
    return found
