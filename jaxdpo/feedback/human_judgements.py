"""Writes people's PASS and FAIL as an alignment set, which says how far a judge agrees with them.

The file's form is that of `jaxdpo.evaluation.human_agreement`: a conversation a line, its last
message the answer, and the judgement.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.feedback.judged import Judged
from jaxdpo.storage.files import replacing


def alignment_lines(judged: Sequence[Judged], criterion: str | None = None) -> list[dict[str, Any]]:
    """Returns a line for each answer that people have passed or failed by a criterion.

    The majority of an answer's annotators decides; where as many pass as fail it, the line has no
    judgement, and readers of alignment sets count it as such. Every judgement stays in `metadata`.

    Args:
      judged: The judgements.
      criterion: The one whose judgements are meant; may be None where there is but one.

    Raises:
      UserError: If there are none, or those of several criteria.
    """
    passed = [one for one in judged if one.judgement.passed is not None]
    names = sorted({one.criterion for one in passed})
    if criterion is None and len(names) > 1:
        raise UserError(
            f"alignment: people judged by {', '.join(names)}; set criterion=… to one of them"
        )
    chosen = [one for one in passed if criterion in (None, one.criterion)]
    if not chosen:
        there = f"; there are judgements by {', '.join(names)}" if names else ""
        raise UserError(f"alignment: no PASS or FAIL by {criterion or 'any criterion'}{there}")
    # Several people's judgements of one answer are one line, or it would count for several.
    answers: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in chosen:
        answers[one.key()].append(one)
    return [_line(lines) for lines in answers.values()]


def _line(lines: Sequence[Judged]) -> dict[str, Any]:
    first = lines[0]
    answer = first.answer
    if isinstance(answer, str):
        answer = {"role": "assistant", "content": answer}
    messages = answer if isinstance(answer, list) else [answer]
    # One vote a judgement: a person's second judgement has replaced the first one already.
    votes = sum(1 if one.judgement.passed else -1 for one in lines)
    verdict = None if votes == 0 else "PASS" if votes > 0 else "FAIL"
    line: dict[str, Any] = {"messages": [*first.prompt["messages"], *messages]}
    if verdict is not None:
        line["judgement"] = verdict
    # The reasons of those who were outvoted would explain the other judgement.
    agreeing = [one for one in lines if one.judgement.passed == (verdict == "PASS")]
    said = list(dict.fromkeys(filter(None, (one.judgement.explanation for one in agreeing))))
    if said:
        line["explanation"] = "\n".join(said)
    line |= {key: first.prompt[key] for key in ("tools", "split") if key in first.prompt}
    people = [
        {"passed": one.judgement.passed, "explanation": one.judgement.explanation, **one.about}
        for one in lines
    ]
    line["metadata"] = {
        **(first.prompt.get("metadata") or {}),
        "criterion": first.criterion,
        "people": people,
    }
    return line


def write_alignment(judged: Sequence[Judged], criterion: str | None, path: Path) -> None:
    """Writes an alignment set.

    Args:
      judged: People's judgements.
      criterion: The one whose judgements are meant; may be None where there is but one.
      path: The file.

    Raises:
      UserError: If there are no judgements, or those of several criteria.
    """
    lines = alignment_lines(judged, criterion)
    with replacing(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
