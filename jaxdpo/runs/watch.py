"""Answers to a few TEST prompts at each evaluation: what the policy says, beside what it scores."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdpo.evaluation.answer_health import (
    PASS_RATE,
    PREFIX,
    WatchConfig,
    WatchedAnswer,
    answer_metrics,
)
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.judgement import Criterion, Example
from jaxdpo.hub.policy import Policy
from jaxdpo.model.decoder import Params
from jaxdpo.runs.folder import ANSWERS_FILE, RunFolder
from jaxdpo.runs.setup import Setup
from jaxdpo.sampling import SamplingConfig, complete, numbered
from jaxdpo.sampling.answers import Answer
from jaxdpo.storage.noted import damaged, read_noted, write_noted
from jaxdpo.training.metrics import Metrics

# Where the data's answers are a word or two, a sentence is not yet an answer without an end.
_FEWEST_NEW_TOKENS = 32
_SHARES = ("unfinished", "empty", "repetitive", "broken", "tokens")


@dataclass(frozen=True)
class WatchedPrompts:
    """The TEST prompts that a run answers at each evaluation.

    Attributes:
      setup: The run.
      sampling: Greedy, with the most tokens that `training.watch` allows.
      ids: Token ids of the prompts.
      examples: The prompts as criteria are given them, without an answer.
      criteria: What the answers are judged by.
    """

    setup: Setup
    sampling: SamplingConfig
    ids: Sequence[list[int]]
    examples: Sequence[Example]
    criteria: Sequence[Criterion]

    @classmethod
    def of(cls, setup: Setup) -> Self | None:
        """Takes the first TEST prompts that differ; None where there are none, or none are wanted.

        Args:
          setup: The run.
        """
        watch: WatchConfig = setup.config.training.watch
        if setup.test is None or watch.prompts == 0:
            return None
        source: Any = setup.test.source
        distinct: dict[tuple[int, ...], int] = {}
        # Data with several pairs to a prompt has the same prompt many times in a row.
        for index in range(len(source)):
            distinct.setdefault(tuple(source[index].prompt_ids.tolist()), index)
            if len(distinct) == watch.prompts:
                break
        examples = []
        for ids, index in distinct.items():
            messages = source.prompt(index) if hasattr(source, "prompt") else None
            # Prompts that came as token ids have no messages.
            text = [{"role": "user", "content": setup.policy.chat.decode(list(ids)).strip()}]
            examples.append(Example(messages or text, "", source.metadata(index)))
        limit = watch.max_new_tokens
        if limit is None:
            longest = max(int(setup.test.packer.lengths[i, 1:].max()) for i in distinct.values())
            limit = max(_FEWEST_NEW_TOKENS, 2 * longest)
        sampling = greedy_sampling(setup.config.sampling, limit)
        criteria = [criterion_named(spec) for spec in watch.criteria or ()]
        return cls(setup, sampling, [list(ids) for ids in distinct], examples, criteria)

    def answer(self, step: int, params: Params, lora: Params | None, folder: RunFolder) -> Metrics:
        """Answers the prompts, keeps the answers in `answers.jsonl`, and measures them.

        Args:
          step: Steps done.
          params: The policy's parameters.
          lora: Its adapters, or None.
          folder: The run folder.

        Returns:
          The metrics of `answer_metrics`, the same on every process.
        """
        policy = replace(self.setup.policy, params=params)
        if lora is not None:
            lora_config = self.setup.objective.compute.lora
            policy = replace(policy, lora=lora, lora_config=lora_config)
        answers = self._answers(policy)
        if folder.writes:
            _keep(folder, step, answers)
        return self._measured(answers)

    def measure(self, policy: Policy) -> Metrics:
        """Answers the prompts and measures the answers, as `answer` does, and keeps none.

        Args:
          policy: The policy that answers.
        """
        return self._measured(self._answers(policy))

    def _answers(self, policy: Policy) -> list[WatchedAnswer]:
        dtype = self.setup.objective.compute.dtype
        found = sorted(complete(policy, numbered(self.ids), self.sampling, dtype))
        return [
            WatchedAnswer(example._replace(completion=each.text), _ids(each), each.finished)
            for example, each in zip(self.examples, found, strict=True)
        ]

    def _measured(self, answers: list[WatchedAnswer]) -> Metrics:
        # Criteria may ask a server, which only one process is to do.
        first = jax.process_index() == 0
        return self._on_every_process(answer_metrics(answers, self.criteria) if first else {})

    def _on_every_process(self, metrics: Metrics) -> Metrics:
        if jax.process_count() == 1:
            return metrics
        rates = [PASS_RATE + criterion.name for criterion in self.criteria]
        names = [PREFIX + name for name in _SHARES]
        names += [name + end for name in rates for end in ("", "_low", "_high")]
        values = np.array([metrics.get(name, math.nan) for name in names])
        shared = np.asarray(multihost_utils.broadcast_one_to_all(values))
        found = zip(names, shared.tolist(), strict=True)
        return {name: value for name, value in found if not math.isnan(value)}


def _ids(answer: Answer) -> np.ndarray:
    # A stop text that was removed from the end leaves no ids, and an answer that ended by it is
    # none that goes on for ever.
    return np.array([] if answer.sampled is None else answer.sampled.ids, np.int32)


def greedy_sampling(sampling: SamplingConfig, max_new_tokens: int) -> SamplingConfig:
    """Returns greedy sampling: its answers change with the policy and with nothing else.

    Args:
      sampling: The run's sampling, for its stop texts.
      max_new_tokens: The most tokens of an answer.
    """
    return SamplingConfig(max_new_tokens=max_new_tokens, stop=sampling.stop)


def _keep(folder: RunFolder, step: int, answers: Sequence[WatchedAnswer]) -> None:
    path = folder.path / ANSWERS_FILE
    kept = (read_noted(path) or "").split("\n")
    # A run that was killed between its answers and its metrics answers once more.
    try:
        earlier = [line for line in kept if line and json.loads(line)["step"] < step]
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(path, f"no answer of this run: {error}") from None
    new = [
        json.dumps(
            {
                "step": step,
                "messages": list(each.example.messages),
                "completion": each.example.completion,
                "finished": each.finished,
            },
            ensure_ascii=False,
        )
        for each in answers
    ]
    write_noted(path, "\n".join([*earlier, *new]) + "\n")
