"""Preference pairs from a model's own answers: sampled, judged, the best against a failed one."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdpo.quickstart.task import Request, Split, make_request, passes

# Requests answered at a time, and answers sampled to each.
REQUESTS, SAMPLES = 200, 8

# Messages in, an answer to each out; None where the model said nothing or came to no end.
AnswerAll = Callable[[Sequence[str]], list[str | None]]


def judge(request: Request, answers: Sequence[str], rng: random.Random) -> tuple[str, str] | None:
    """Chooses and rejects among the answers to one request; None if all pass or all fail.

    The longest passing answer is chosen: of two good answers the one that names the museum, so
    that brevity beyond the limit is not what is learnt. A failing one is rejected by lot.
    """
    prompt = request.prompt()
    passing = [answer for answer in answers if passes(prompt, answer)]
    failing = [answer for answer in answers if not passes(prompt, answer)]
    if not passing or not failing:
        return None
    return max(passing, key=len), rng.choice(failing)


def sample_pairs(
    split: Split, answer_all: AnswerAll, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Pairs without end, as records of the preference JSONL; at most one to a request."""
    while True:
        requests = [make_request(split, rng) for _ in range(REQUESTS)]
        prompts = [request.prompt() for request in requests for _ in range(SAMPLES)]
        answers = answer_all(prompts)
        for number, request in enumerate(requests):
            own = answers[number * SAMPLES : (number + 1) * SAMPLES]
            judged = judge(request, [text for text in own if text is not None], rng)
            if judged is not None:
                yield record(request, *judged, split)


def record(request: Request, chosen: str, rejected: str, split: Split) -> dict[str, Any]:
    return {
        "messages": [message("user", request.prompt()), message("assistant", chosen)],
        "rejected_message": message("assistant", rejected),
        "split": split,
    }


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
