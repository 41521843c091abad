"""A blind match between two models: the same prompts, hidden names, a win rate that grows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from jaxdpo.annotation.conversation import Event, turns_in
from jaxdpo.annotation.tasks import Task
from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.feedback.store import FeedbackStore


@dataclass(frozen=True)
class Score:
    """The state of a match.

    Attributes:
      first: Name of the model whose wins are counted.
      second: Name of the other.
      wins: Comparisons that the first won.
      losses: Comparisons that it lost.
      ties: Comparisons that nobody won, both bad among them.
      rate: The first's share of wins, ties half, with its interval.
      p: The chance of so uneven a result between equal models, ties aside.
    """

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    rate: Estimate
    p: float


class Matches:
    """The matches of a studio, each prompt once for each annotator."""

    def __init__(self, tasks: dict[str, Task], models: Sequence[str], store: FeedbackStore) -> None:
        """Takes the prompts.

        Args:
          tasks: Rows whose prompts are asked: those of TEST, which nothing trains on, if any are.
          models: Names of the models.
          store: Where the comparisons are kept.
        """
        tested = {name: task for name, task in tasks.items() if task.prompt.split == "TEST"}
        self.tasks = tested or tasks
        self.pairs = list(itertools.combinations(models, 2))
        self._store = store

    def next(self, annotator: str, pair: int) -> str | None:
        """Begins the next comparison of a match and returns its conversation; None after the last.

        Args:
          annotator: Who compares.
          pair: Number of the match.
        """
        # In the order of the data, so that all annotators compare the same prompts first.
        for task in self.tasks:
            name = f"match/{annotator}/{pair}/{task}"
            turns = turns_in(self._store.events(name))
            if not turns:
                self._store.append([self._prompt(name, task, annotator, pair)])
            elif turns[0].state.verdicts:
                continue
            return name
        return None

    def _prompt(self, name: str, task: str, annotator: str, pair: int) -> Event:
        prompt = self.tasks[task].prompt
        return {
            "id": f"{name}/prompt",
            "conversation": name,
            "event": "prompt",
            "annotator": annotator,
            "messages": list(prompt.messages),
            "split": prompt.split,
            # Kept with the pair, which is a comparison of these two and no other models.
            "metadata": {**prompt.metadata, "match": list(self.pairs[pair])},
            **({"tools": list(prompt.tools)} if prompt.tools else {}),
        }

    def models_of(self, conversation: str) -> tuple[str, str] | None:
        """Returns the two models that a comparison is between; None for no such comparison."""
        parts = conversation.split("/")
        if parts[0] != "match" or not parts[2].isdecimal() or int(parts[2]) >= len(self.pairs):
            return None
        return self.pairs[int(parts[2])]

    def score(self, pair: int) -> Score:
        """Counts the comparisons of all annotators in a match."""
        # Imported here: scipy takes a second, and most studios begin without a match.
        from jaxdpo.evaluation.statistics import sign_test

        first, second = self.pairs[pair]
        wins = losses = ties = 0
        for events in self._store.conversations("match/").values():
            turn = turns_in(events)[0]
            if turn.prompt["metadata"]["match"] != [first, second] or not turn.state.verdicts:
                continue
            verdict = turn.state.verdicts[0]
            # Both bad is no win for either, as a tie is none.
            if verdict["event"] != "selected":
                ties += 1
            elif turn.state.outputs[verdict["output"]].get("model") == first:
                wins += 1
            else:
                losses += 1
        rate = share(wins + ties / 2, wins + losses + ties)
        return Score(first, second, wins, losses, ties, rate, sign_test(wins, losses))
