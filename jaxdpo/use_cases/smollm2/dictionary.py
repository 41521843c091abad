"""A required format: the entry of a dictionary, "whale: a large animal that lives in the sea"."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.use_cases.smollm2.quality import evades, is_tautology, repeats_itself
from jaxdpo.use_cases.smollm2.task import Asked, Split, Task, distinct, judged
from jaxdpo.use_cases.smollm2.topics import shuffled_topics

# With the word itself; a definition in a dictionary has about ten.
_MOST_WORDS = 16
# Two wordings, so that what is learnt is the form and not one sentence's continuation.
_FORMS = (
    'Write the dictionary entry of the word "{}" in one line, in the form "{}: meaning".',
    'Define the word "{}" in one line. Write the word, a colon and its meaning: "{}: meaning".',
)


def draw(split: Split, count: int, rng: random.Random) -> list[Asked]:
    """Draws prompts about as many topics of a split as there are, then about them again.

    Args:
      split: Whose topics.
      count: Number of prompts.
      rng: Makes the draws.
    """
    topics = shuffled_topics(split, rng)

    def one() -> Asked:
        topic = next(topics)
        return Asked(rng.choice(_FORMS).format(topic, topic), {"topic": topic})

    return distinct(count, one)


def judge(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes one line of the form that says something about the word.

    Args:
      messages: The prompt; not read.
      completion: The answer.
      metadata: The topic.
    """
    topic, text = metadata["topic"], completion.strip()
    form = re.match(rf"\"?{topic}\"?: ?\S", text, re.IGNORECASE)
    # Repetition and emptiness are judged without the word, which the form itself repeats.
    meaning = text.partition(":")[2]
    return judged(
        {
            f'begins with "{topic}: "': form is not None,
            "one line": "\n" not in text,
            f"at most {_MOST_WORDS} words": len(text.split()) <= _MOST_WORDS,
            "says something": not is_tautology(meaning or text, [topic, "meaning", "defin"]),
            "no repetition": not repeats_itself(meaning or text),
            "no evasion": not evades(text),
        }
    )


TASK = Task(
    name="dictionary",
    title="Required format",
    asks='Write the entry of "whale" in a dictionary, in the form "whale: meaning".',
    criterion=f"{__name__}:judge",
    draw=draw,
    max_new_tokens=40,
)
