"""Records of known data sets that nest their columns, as records with the columns side by side.

Each takes the record of one published schema; what it does not take out stays where it is.
"""

from collections.abc import Callable
from typing import Any

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.reading.conversation import said_in

Record = dict[str, Any]


def flattened(record: Record) -> Record:
    """Returns a record of a known nested shape with its columns side by side, others unchanged."""
    if _MARKS.isdisjoint(record):
        return record
    for marks, flatten in _SHAPES:
        if all(mark in record for mark in marks):
            return flatten(record)
    return record


def _comparison(record: Record) -> Record:
    """Flattens tinker-cookbook's labelled comparisons."""
    inner = record["comparison"]
    if not isinstance(inner, dict):
        return record
    rest = {key: value for key, value in record.items() if key != "comparison"}
    return {**inner, **rest}


def _summaries(record: Record) -> Record:
    """Flattens OpenAI's comparisons of summaries, with the prompt that its models were asked."""
    info, summaries = record["info"], record["summaries"]
    texts = [each.get("text") for each in summaries if isinstance(each, dict)]
    if not isinstance(info, dict) or len(texts) != 2:
        return record
    # Stiennon et al. 2020, appendix B.5: the models were asked subreddit, title and post, and
    # "TL;DR:" to begin the summary. Of news articles the text alone is asked.
    parts = [
        f"{label}{info[key]}"
        for key, label in (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "), ("post", "POST: "))
        if info.get(key) and (key == "post" or info.get("post"))
    ]
    if info.get("article") and not info.get("post"):
        parts = [f"Article: {info['article']}"]
    if not parts:
        raise BadPair("no-prompt", f"info holds neither post nor article: {show(info)}")
    # `choice` is 0 or 1, which the columns' names then say.
    rest = {k: v for k, v in record.items() if k not in ("info", "summaries")}
    facts = {"info_id": info["id"]} if info.get("id") else {}
    prompt = "\n\n".join([*parts, "TL;DR:"])
    return {**rest, **facts, "prompt": prompt, "summary_0": texts[0], "summary_1": texts[1]}


def _webgpt(record: Record) -> Record:
    """Takes the question's text out of WebGPT's structure of it."""
    question = record["question"]
    if not isinstance(question, dict) or not isinstance(question.get("full_text"), str):
        return record
    rest = {key: value for key, value in record.items() if key != "question"}
    facts = {
        f"question_{key}": value for key, value in question.items() if key in ("id", "dataset")
    }
    return {**rest, **facts, "question": question["full_text"]}


def _arena(record: Record) -> Record:
    """Joins LMSYS' questions and each model's answers, parallel lists, to two conversations."""
    keys = ("prompt", "response_a", "response_b")
    # Question i is followed by each model's answer i; the models saw only their own answers.
    asked, *answered = (_listed(record[key], key) for key in keys)
    rest = {key: value for key, value in record.items() if key not in keys}
    for side, answers in zip("ab", answered, strict=True):
        if len(answers) != len(asked):
            raise BadPair(
                "messages-type",
                f"prompt holds {len(asked)} questions and response_{side} {len(answers)} answers",
            )
        turns = zip(asked, answers, strict=True)
        rest[f"conversation_{side}"] = [
            message
            for question, answer in turns
            for message in (
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            )
        ]
    return rest


def _listed(value: Any, name: str) -> list[Any]:
    import json

    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return [value]
    if not isinstance(value, list):
        raise BadPair("messages-type", f"{name} is {show(value)}; write a list of texts")
    return value


def is_log(record: Record) -> bool:
    """Tells one of OpenPipe's request logs: a request, and what came back."""
    asked = record.get("input")
    return "output" in record and isinstance(asked, dict) and "messages" in asked


def of_log(record: Record) -> Record:
    """Returns a request log as a conversation; the user's tags become its metadata.

    Raises:
      BadPair: If no answer came back.
    """
    asked, came = record["input"], record["output"]
    # A request that failed is logged with its error in place of an answer.
    choices = came.get("choices") if isinstance(came, dict) else None
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    if not isinstance(message, dict):
        raise BadPair("no-answer", f"output holds no message: {show(came)}; drop the line")
    messages = said_in(asked["messages"], "input.messages", "user")
    # How the answer was sampled is of no use for training; the reader counts it.
    kept = {key: asked[key] for key in ("tools", "functions") if key in asked}
    rest = {key: value for key, value in record.items() if key not in ("input", "output", "tags")}
    tags = record.get("tags")
    rest |= {"metadata": tags} if isinstance(tags, dict) and tags else {}
    return {**rest, **kept, "messages": [*(said.message for said in messages), message]}


_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Record], Record]], ...] = (
    (("comparison", "label"), _comparison),
    (("info", "summaries", "choice"), _summaries),
    (("question", "answer_0", "answer_1"), _webgpt),
    (("prompt", "response_a", "response_b", "winner_model_a"), _arena),
)
# A column of each shape that few others have: most records are told by it at a look.
_MARKS = frozenset({"comparison", "summaries", "answer_0", "winner_model_a"})
