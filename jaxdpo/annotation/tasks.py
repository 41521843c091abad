"""The queue of Review: rows of data, shared out among annotators with overlap."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jaxdpo.annotation.conversation import Event, turns_in
from jaxdpo.annotation.generating import generated_event
from jaxdpo.data.reading.prompts import Prompt, PromptsConfig, read_prompts
from jaxdpo.data.reading.sources import find_sources, read_source
from jaxdpo.errors import UserError
from jaxdpo.feedback.store import FeedbackStore

# How long a row waits for someone who has opened it before others may have it, too.
HOLD = timedelta(hours=1)
_random = random.SystemRandom()


@dataclass(frozen=True)
class Task:
    """A row to be judged.

    Attributes:
      prompt: The prompt.
      answers: Answers that the data give to it, each with its model where that is known.
    """

    prompt: Prompt
    answers: tuple[tuple[Any, str | None], ...]


def read_tasks(config: PromptsConfig | None) -> dict[str, Task]:
    """Reads the rows to be judged, by the digest of their prompt.

    Preference data bring both their answers, other data the one that they have; a file of answers
    that `jaxdpo sample` wrote brings all answers to a prompt. Prompts alone bring none.

    Raises:
      UserError: If the data cannot be read.
    """
    if config is None:
        return {}
    # Prompts are read by the one reader of all commands; only the answers are looked up here.
    sampled = _sampled_answers(config.path)
    return {
        prompt.id: Task(prompt, tuple(sampled.get(_key(prompt.messages), _own(prompt))))
        for prompt in read_prompts(config).prompts
    }


def _own(prompt: Prompt) -> list[tuple[Any, str | None]]:
    return [(list(prompt.answer), None)] if prompt.answer else []


def _key(messages: Sequence[Any]) -> str:
    return str([(m.get("role"), m.get("content")) for m in messages])


def _sampled_answers(path: str) -> dict[str, list[tuple[Any, str | None]]]:
    """Returns all answers to each prompt of files of answers, or of preference data."""
    found: dict[str, list[tuple[Any, str | None]]] = {}
    for source in find_sources(path):
        for record in read_source(source):
            value = getattr(record, "value", None)
            if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
                continue
            if isinstance(value.get("completion"), str):
                answers = found.setdefault(_key(value["messages"]), [])
                answers.append((value["completion"], value.get("model")))
            # The page shuffles them, so nobody sees which one was preferred before.
            elif isinstance(value.get("rejected_message"), dict):
                asked, chosen = value["messages"][:-1], value["messages"][-1]
                answers = found.setdefault(_key(asked), [])
                answers += [([chosen], None), ([value["rejected_message"]], None)]
    return found


class Queue:
    """Rows as they are given to annotators, each in a conversation of that annotator's own."""

    def __init__(self, tasks: dict[str, Task], store: FeedbackStore, overlap: int) -> None:
        """Takes the rows.

        Args:
          tasks: The rows, by name.
          store: Where assignments and conversations are kept.
          overlap: How many people judge each row.
        """
        self.tasks, self._store, self._overlap = tasks, store, overlap

    def conversation(self, task: str, annotator: str) -> str:
        """Returns the name of the conversation in which an annotator judges a row."""
        return f"review/{annotator}/{task}"

    def next(self, annotator: str) -> str | None:
        """Returns the row that an annotator is to judge now; None if all are done.

        The first that is open still, or else a new one.
        """
        for task, progress in self._store.assigned(annotator).items():
            if task in self.tasks and progress == "open":
                return self._opened(task, annotator)
        # Given in one transaction: two people who ask at once never get one place of a row.
        task = self._store.assign(list(self.tasks), annotator, self._overlap, HOLD)
        return None if task is None else self._opened(task, annotator)

    def previous(self, annotator: str, task: str | None) -> str | None:
        """Opens the row again that an annotator had before another one, or had last."""
        mine = [each for each in self._store.assigned(annotator) if each in self.tasks]
        at = mine.index(task) if task in mine else len(mine)
        if at == 0:
            return None
        self._store.settle(mine[at - 1], annotator, "open")
        return mine[at - 1]

    def finish(self, annotator: str, task: str, skipped: bool) -> None:
        """Notes that an annotator is done with a row.

        Args:
          annotator: Who had it.
          task: The row.
          skipped: Whether it goes back to the others.
        """
        self._store.settle(task, annotator, "skipped" if skipped else "done")

    def progress(self, annotator: str) -> dict[str, int]:
        """Counts an annotator's rows, and all."""
        mine = {t: p for t, p in self._store.assigned(annotator).items() if t in self.tasks}
        counts = Counter(mine.values())
        return {"done": counts["done"], "skipped": counts["skipped"], "rows": len(self.tasks)}

    def everybody(self) -> list[tuple[str, dict[str, int]]]:
        """Returns the progress of each annotator who has begun."""
        return [(name, self.progress(name)) for name in self._store.annotators()]

    def _opened(self, task: str, annotator: str) -> str:
        """Begins an annotator's conversation about a row, if it has not begun."""
        name = self.conversation(task, annotator)
        if self._store.events(name):
            return task
        prompt = self.tasks[task].prompt
        event: Event = {
            "id": f"{name}/prompt",
            "conversation": name,
            "event": "prompt",
            "annotator": annotator,
            "messages": list(prompt.messages),
            "split": prompt.split,
        }
        # Fields that say nothing are left out, so that equal prompts stay equal.
        optional = {"tools": list(prompt.tools), "metadata": prompt.metadata,
                    "chat_template_kwargs": prompt.template_kwargs}  # fmt: skip
        event |= {key: value for key, value in optional.items() if value}
        answers = self._answers(task)
        # Each annotator has an order of their own, so that a side's pull cancels out.
        _random.shuffle(answers)
        turn = turns_in([event])[0]
        shown = [
            generated_event(name, turn, (place, model), content)
            for place, (content, model) in enumerate(answers)
        ]
        self._store.append([event, *shown])
        return task

    def _answers(self, task: str) -> list[tuple[Any, str | None]]:
        """Returns the row's answers: the data's, or those that a model gave another annotator."""
        if self.tasks[task].answers:
            return [(_plain(content), model) for content, model in self.tasks[task].answers]
        # People who judge one row must see the same answers, or they could not agree.
        for name, events in self._store.conversations("review/").items():
            if name.rpartition("/")[2] == task:
                state = turns_in(events)[-1].state
                if state.attempts:
                    outputs = [state.outputs[output] for output in state.attempts[0]]
                    return [(each["content"], each.get("model")) for each in outputs]
        return []


def _plain(content: Any) -> Any:
    """Returns an answer of one message of text as that text."""
    if isinstance(content, list) and len(content) == 1 and content[0].keys() <= {"role", "content"}:
        return content[0]["content"]
    return content


def check_answerable(tasks: dict[str, Task], has_models: bool) -> None:
    """Refuses rows without answers where no model could answer them.

    Raises:
      UserError: Naming the first such row.
    """
    empty = [task.prompt for task in tasks.values() if not task.answers]
    if empty and not has_models:
        raise UserError(
            f"{empty[0].source}: has no answer, and {len(empty)} of {len(tasks)} rows are like it; "
            "set models to models that answer, or name data with answers"
        )
