"""From the runs' `result.json` files to a page: rates with 95% intervals, and the answers."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.evaluation.statistics import difference, fewer_failures, mcnemar, pair_up
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.smollm2.tasks import TASKS

# What counts is what DPO adds to supervised training on the same chosen answers, so the two others
# are compared with that, prompt by prompt.
_AGAINST = "SFT on chosen"
_COMPARED = ("DPO", "DPO + SFT")
# Prompts whose answers are shown, of the first seed, in the file's order: none was chosen.
_SHOWN = 5
_MOST_CHARACTERS = 160

Result = dict[str, Any]
Answer = dict[str, Any]


def write_report(folder: Path, page: Path | None = None) -> str:
    """Writes the results of every `result.json` below a folder, and returns their text.

    Args:
      folder: The folder of the use case, or one with copies of its files.
      page: Markdown file whose part between two marks is replaced; None for a new `results.md`.

    Raises:
      UserError: If there are no results, or the page has no such marks.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in _files(folder)]
    if not results:
        raise UserError(f"{folder}: holds no result.json of a seed; run a task first")
    parts = []
    for name, task in TASKS.items():
        own = sorted((one for one in results if one["task"] == name), key=lambda one: one["seed"])
        if own:
            parts.append(f"### {task.title}\n\n`{task.asks}`\n\n{task_section(own)}")
    text = "\n\n".join(parts) + "\n"
    path = folder / "results.md" if page is None else page
    whole = text if page is None else _replaced(page, text)
    with replacing(path) as file:
        file.write(whole)
    return text


def _replaced(page: Path, text: str) -> str:
    begin, end = (f"<!-- {name} -->\n" for name in ("results", "end of results"))
    whole = page.read_text(encoding="utf-8") if page.is_file() else ""
    if begin not in whole or end not in whole.partition(begin)[2]:
        raise UserError(f"{page}: has no lines {begin.strip()} and {end.strip()} to write between")
    before, _, rest = whole.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*/seed_*/result.json"), *folder.glob("*-seed_*.json")])


def task_section(results: Sequence[Result]) -> str:
    """Returns the section of a task: its figures, and answers.

    Args:
      results: Of each seed.
    """
    seeds = ", ".join(str(one["seed"]) for one in results)
    pairs = ", ".join(str(one["pairs"]) for one in results)
    minutes = ", ".join(f"{one['cpu_seconds'] / 60:.0f}" for one in results)
    told = f"Seeds {seeds}: {pairs} pairs; {minutes} CPU-minutes."
    answers = [{**answer, "seed": one["seed"]} for one in results for answer in one["answers"]]
    parts = [told]
    for temperature, how in ((0.0, "Greedy answers"), (1.0, "Sampled answers (temperature 1)")):
        own = [answer for answer in answers if answer["temperature"] == temperature]
        parts += [f"#### {how}", rates_table(own), *_differences(own)]
    greedy = [a for a in answers if not a["temperature"] and a["seed"] == results[0]["seed"]]
    parts += [
        "#### Answers as they are (greedy, the first prompts of the first seed)",
        _shown(greedy),
    ]
    return "\n\n".join(parts)


def rates_table(answers: Sequence[Answer]) -> str:
    """Returns the table of how many answers of each model pass, and what fails most.

    Args:
      answers: Of one temperature, of all seeds.
    """
    lines = ["| model | passes | words | fails most |", "|---|---|---|---|"]
    for model in _models(answers):
        own = [answer for answer in answers if answer["model"] == model]
        rate = share(sum(answer["passed"] for answer in own), len(own))
        words = sum(len(answer["answer"].split()) for answer in own) / len(own)
        faults = Counter(fault for answer in own for fault in faults_of(answer))
        most = ", ".join(f"{name} {count}" for name, count in faults.most_common(2)) or "nothing"
        lines.append(f"| {model} | {percent(rate)} of {len(own)} | {words:.1f} | {most} |")
    return "\n".join(lines)


def faults_of(answer: Answer) -> list[str]:
    """Returns the checks that an answer fails, those that name a value under one name."""
    if answer["passed"]:
        return []
    # "at most 8 words" and "at most 9 words" are one fault.
    checks = answer["why"].removeprefix("not: ").split(", ")
    return [" ".join(word for word in check.split() if word.isalpha()) for check in checks]


def percent(estimate: Estimate) -> str:
    """Returns a share as `48% (36 to 61)`."""
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})".replace(
        "% to", " to"
    )


def _models(answers: Iterable[Answer]) -> list[str]:
    return list(dict.fromkeys(answer["model"] for answer in answers))


def _differences(answers: Sequence[Answer]) -> list[str]:
    """Returns a sentence for each contestant that is compared with supervised training."""
    said = []
    for model in _COMPARED:
        # The same prompts in the same order: each seed's, one seed after the other.
        passed = [
            [a["passed"] for a in answers if a["model"] == name] for name in (_AGAINST, model)
        ]
        if not all(passed):
            continue
        paired = pair_up(*passed)
        gain, fewer = difference(paired), fewer_failures(paired)
        said.append(
            f"{_AGAINST} → {model}: {gain.value * 100:+.0f} points ({gain.low * 100:+.0f} to "
            f"{gain.high * 100:+.0f}), McNemar's p {mcnemar(paired):.2g}, {percent(fewer)} fewer "
            "failures."
        )
    return ["\n".join(f"- {each}" for each in said)] if said else []


def _shown(answers: Sequence[Answer]) -> str:
    # The model's words go into a page for people: shortened, on one line, and as code.
    prompts = list(dict.fromkeys(answer["prompt"] for answer in answers))[:_SHOWN]
    parts = []
    for prompt in prompts:
        lines = [f"> {_plain(prompt)}"]
        for answer in answers:
            if answer["prompt"] == prompt:
                mark = "✓" if answer["passed"] else f"✗ ({answer['why']})"
                lines.append(f"- {answer['model']}: {_plain(answer['answer'])} {mark}")
        parts.append("\n".join([lines[0], "", *lines[1:]]))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Returns a text on one line, and harmless in Markdown: a model may have written it."""
    line = " ⏎ ".join(text.strip().splitlines())
    shown = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"
    return "`" + shown.replace("`", "'") + "`"
