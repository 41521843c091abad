"""One seed of a task, from prompts to measured answers; read `run_seed` downwards.

The model answers prompts of TRAIN, the task's criterion makes pairs of the answers, every
contestant is trained on the same pairs, and all answer the same prompts of TEST.
"""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo import EvaluateConfig, PairingConfig, SamplingConfig, compare, fit, make_pairs
from jaxdpo.cli.settings import read_yaml
from jaxdpo.config import load_config
from jaxdpo.data.generations import Generation
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.judgement import example_of
from jaxdpo.printable import show
from jaxdpo.rounds.sample import SampleConfig, sample
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.smollm2.config import Smollm2Config
from jaxdpo.use_cases.smollm2.task import Split, Task

_HERE = Path(__file__).parent
# As it is; among its answers the criterion chooses in "best of 4".
BASE = "SmolLM2 as it is"
_BEST_OF = 4
BEST = f"best of {_BEST_OF}"
# At 1 the answers of so small a model are hardly ever right; the pairs need some that are.
_PAIRING = {"temperature": 0.8, "top_p": 0.95}
# Completions decoded at a time.
_TOGETHER = 80


@dataclass(frozen=True)
class Seed:
    """One seed of a task.

    Attributes:
      task: The task.
      config: Sizes.
      seed: The seed.
    """

    task: Task
    config: Smollm2Config
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of all its files."""
        return Path(self.config.folder) / self.task.name / f"seed_{self.seed}"

    def prompts(self, split: Split, count: int) -> Path:
        """Writes prompts of a split to a file, unless it is there, and returns its path.

        Args:
          split: The split.
          count: Number of prompts.
        """
        path = self.folder / f"{split.lower()}.jsonl"
        if not path.exists():
            drawn = self.task.draw(split, count, random.Random(f"{self.task.name} {self.seed}"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                for asked in drawn:
                    messages = [{"role": "user", "content": asked.prompt}]
                    line = {"messages": messages, "metadata": dict(asked.metadata)}
                    file.write(json.dumps(line) + "\n")
        return path

    def sampling(self, **how: float) -> SamplingConfig:
        """Returns the settings by which answers are drawn.

        Args:
          how: `temperature`, and `top_p` if it is not 1.
        """
        values = {**how, "max_new_tokens": self.task.max_new_tokens, "batch_size": _TOGETHER}
        return SamplingConfig.model_validate({**values, "seed": self.seed})


def contestants() -> dict[str, dict[str, Any]]:
    """Returns the contestants, each with what its run sets, by `section.field`."""
    return read_yaml(_HERE / "settings.yaml")


def run_seed(seed: Seed) -> dict[str, Any]:
    """Runs one seed of a task; stages that are finished already are not done again.

    Returns:
      The content of `result.json` in the seed's folder.
    """
    path = seed.folder / "result.json"
    if not path.exists():
        begun = time.process_time()
        pairs = preference_pairs(seed)
        models = {BASE: seed.config.model}
        models |= {name: str(train(seed, name, name, {})) for name in contestants()}
        # The same prompts for all, so that differences are those of the models.
        test = seed.prompts("TEST", seed.config.tests)
        measured = [
            *evaluate(seed, models, test, 0.0, "greedy"),
            *evaluate(seed, models, test, 1.0, "sampled"),
            *best_of_answers(seed, test),
        ]
        result = {
            "task": seed.task.name,
            "seed": seed.seed,
            "pairs": len(pairs.read_text(encoding="utf-8").splitlines()),
            # Of what this process did, which is all where nothing was cut off.
            "cpu_seconds": round(time.process_time() - begun, 1),
            "answers": measured,
        }
        with replacing(path) as file:
            json.dump(result, file, indent=1, ensure_ascii=False)
    return json.loads(path.read_text(encoding="utf-8"))


def preference_pairs(seed: Seed) -> Path:
    """Makes pairs of the model's own answers by the criterion, and returns their file.

    Raises:
      UserError: If no prompt has answers of which one is better.
    """
    folder = seed.folder / "pairs"
    path = folder / "pairs.jsonl"
    if path.exists():
        return path
    settings = {
        "model": seed.config.model,
        "data": {"path": str(seed.prompts("TRAIN", seed.config.prompts)), "test_fraction": 0.05},
        "criteria": seed.task.criterion,
        "samples": seed.config.samples,
        "sampling": seed.sampling(**_PAIRING),
        "margin": seed.config.margin,
        "folder": str(folder),
    }
    made = make_pairs(PairingConfig.model_validate(settings))
    show(made.collected.summary())
    if made.pairs is None:
        raise UserError(f"{folder}: no prompt has answers of which one is better")
    return made.pairs


def train(seed: Seed, contestant: str, folder: str, changes: Mapping[str, Any]) -> Path:
    """Trains a contestant on the pairs, and returns the folder of its adapter.

    Args:
      seed: The seed, whose pairs are made.
      contestant: Name of the contestant.
      folder: Run folder, in the seed's.
      changes: Values in place of the contestant's own, by `section.field`.
    """
    values = {
        "model.path": seed.config.model,
        "data.path": str(seed.folder / "pairs" / "pairs.jsonl"),
        "training.seed": seed.seed,
        "training.folder": str(seed.folder / folder.replace(" ", "_")),
        **contestants()[contestant],
        **changes,
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return fit(load_config(_HERE / "run.yaml", overrides)).folder / "model"


def evaluate(
    seed: Seed, models: Mapping[str, str], prompts: Path, temperature: float, folder: str
) -> list[dict[str, Any]]:
    """Lets models answer prompts, and returns every answer with its judgement.

    Args:
      seed: The seed.
      models: Name ↦ where it lies.
      prompts: The file of prompts.
      temperature: Of the sampling.
      folder: Place of the comparison's files, in the seed's folder.
    """
    settings = {
        "models": dict(models),
        "data": {"path": str(prompts)},
        "criteria": seed.task.criterion,
        "sampling": seed.sampling(temperature=temperature),
        "out": str(seed.folder / "evaluation" / folder),
    }
    comparison = compare(EvaluateConfig.model_validate(settings))
    return [
        answer_line(name, temperature, row.answers[name], judgement.passed, judgement.explanation)
        for name in models
        for row in comparison.rows
        for judgement in row.judgements[name].values()
    ]


def best_of_answers(seed: Seed, prompts: Path) -> list[dict[str, Any]]:
    """Lets the criterion choose among answers of the model as it is: no training at all.

    Args:
      seed: The seed.
      prompts: The file of prompts.
    """
    settings = {
        "model": seed.config.model,
        "data": {"path": str(prompts)},
        "criteria": seed.task.criterion,
        "best_of": _BEST_OF,
        "sampling": seed.sampling(temperature=1.0),
        "out": str(seed.folder / "evaluation" / "best_of.jsonl"),
    }
    answers = sample(SampleConfig.model_validate(settings))
    # The command writes the best answers without their judgements.
    judge = criterion_named(seed.task.criterion).judge
    judgements = judge([example_of(answer) for answer in answers])
    return [
        answer_line(BEST, 1.0, answer, judgement.passed, judgement.explanation)
        for answer, judgement in zip(answers, judgements, strict=True)
    ]


def answer_line(
    model: str, temperature: float, answer: Generation, passed: bool | None, why: str
) -> dict[str, Any]:
    """Returns what `result.json` keeps of an answer.

    Args:
      model: The model's name.
      temperature: Of the sampling.
      answer: The answer.
      passed: Whether the criterion passes it.
      why: The criterion's explanation.
    """
    return {
        "model": model,
        "temperature": temperature,
        "prompt": answer.messages[-1]["content"],
        "answer": answer.completion,
        "passed": bool(passed),
        "why": why,
    }


def tune(seed: Seed) -> list[tuple[str, float, int, int]]:
    """Measures every contestant at several learning rates on VALIDATION, greedily.

    Returns:
      Contestant, learning rate, answers that pass, and answers.
    """
    # A seed of its own is best for this: nothing is then tuned on pairs that are reported.
    preference_pairs(seed)
    models = {}
    for name in contestants():
        for rate in seed.config.rates:
            run, changes = f"{name} at {rate:g}", {"optimizer.learning_rate": rate}
            models[run] = str(train(seed, name, f"tuning/{run}", changes))
    prompts = seed.prompts("VALIDATION", seed.config.tests)
    said = evaluate(seed, models, prompts, 0.0, "validation")
    found = []
    for run in models:
        name, _, rate = run.rpartition(" at ")
        passed = [answer["passed"] for answer in said if answer["model"] == run]
        found.append((name, float(rate), sum(passed), len(passed)))
    return found
