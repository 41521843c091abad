"""Word limit: "Describe a dam in at most 8 words." """

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.use_cases.smollm2.quality import evades, is_sentence, is_tautology, repeats_itself
from jaxdpo.use_cases.smollm2.task import Asked, Split, Task, distinct, judged
from jaxdpo.use_cases.smollm2.topics import shuffled_topics, with_article

# Tight enough that the model as it is hardly ever keeps to them, and loose enough for a sentence.
_LIMITS = range(8, 16)


def draw(split: Split, count: int, rng: random.Random) -> list[Asked]:
    """Draws prompts about as many topics of a split as there are, then about them again.

    Args:
      split: Whose topics.
      count: Number of prompts.
      rng: Makes the draws.
    """
    topics = shuffled_topics(split, rng)

    def one() -> Asked:
        topic, limit = next(topics), rng.choice(_LIMITS)
        prompt = f"Describe {with_article(topic)} in at most {limit} words."
        return Asked(prompt, {"topic": topic, "limit": limit})

    return distinct(count, one)


def judge(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes one whole sentence within the limit that says something about the topic.

    Args:
      messages: The prompt; not read.
      completion: The answer.
      metadata: Topic and limit.
    """
    topic, limit = metadata["topic"], metadata["limit"]
    return judged(
        {
            f"at most {limit} words": len(completion.split()) <= limit,
            "one whole sentence": is_sentence(completion),
            # A plural, or another form, names it too.
            f"names the {topic}": re.search(rf"\b{topic}", completion, re.IGNORECASE) is not None,
            "says something": not is_tautology(completion, [topic]),
            "no repetition": not repeats_itself(completion),
            "no evasion": not evades(completion),
        }
    )


TASK = Task(
    name="word_limit",
    title="Word limit",
    asks="Describe a whale in at most 9 words.",
    criterion=f"{__name__}:judge",
    draw=draw,
    max_new_tokens=40,
)
