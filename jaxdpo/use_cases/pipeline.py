"""From a use case to its proof, with what every user has; read `run_seed` downwards.

A supervised run, pairs of the model's own answers, a DPO run, a comparison: `fit`, `make_pairs`,
`fit`, `compare`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo import EvaluateConfig, PairingConfig, SamplingConfig, compare, fit, make_pairs
from jaxdpo.devices.machine import peak_memory
from jaxdpo.errors import UserError
from jaxdpo.evaluation.comparison import Comparison
from jaxdpo.evaluation.judgement import Example
from jaxdpo.losses.config import LossConfig
from jaxdpo.printable import show
from jaxdpo.rounds.sample import SampleConfig, sample
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.model import write_new_model
from jaxdpo.use_cases.task import Domain, UseCase, mean_quality
from jaxdpo.use_cases.workshop import (
    Workshop,
    assistant,
    open_workshop,
    read_json,
    read_lines,
    user,
    write_json,
    write_lines,
)

# Examples that the tokenizer is trained on: every word of a task is among them.
_TOKENIZER_EXAMPLES = 1000
# The longest answer has fewer tokens.
_MAX_NEW_TOKENS = 48
# Completions decoded at a time: the model is so small that a step costs the same for many rows.
_DECODED_TOGETHER = 256
# Answers of the supervised model that the criterion chooses from, in the bar "best of 4".
_BEST_OF = 4
# The criterion's scores are 0 for a failure, at most 0.4 for an answer that passes and is poor, and
# 1 for one that is right in all: this pairs the last kind with both others.
_MARGIN = 0.5
# TEST pairs only show the losses of the run; the figures are of other prompts.
_TEST_PAIRS = 0.05


@dataclass(frozen=True)
class Measured:
    """One model's answers to one set of prompts, measured.

    Attributes:
      failed: 1 for each answer that failed, else 0, in the order of the prompts.
      quality: The mean of each measure of quality.
    """

    failed: list[int]
    quality: dict[str, float]


def run_seed(case: UseCase, config: UseCasesConfig, seed: int) -> dict[str, Any]:
    """Runs one seed of a use case, from random weights to measured failures.

    Stages that are finished already are not done again.

    Args:
      case: The use case.
      config: Sizes.
      seed: The seed.

    Returns:
      The content of `result.json` in the seed's folder.
    """
    workshop = open_workshop(case, config, seed)
    path = workshop.folder / "result.json"
    if not path.exists():
        with workshop.timed("supervised"):
            sft = supervised_model(workshop)
        with workshop.timed("pairs"):
            pairs = preference_pairs(workshop)
        with workshop.timed("dpo"):
            dpo = preference_model(workshop)
        with workshop.timed("sft on best"):
            best = best_model(workshop)
        with workshop.timed("evaluation"):
            measured = evaluate(workshop, {"SFT": sft, "SFT on best": best, "DPO": dpo})
        result = {
            "seed": seed,
            "pairs": len(read_lines(pairs)),
            "measured": measured,
            "seconds": read_json(workshop.folder / "seconds.json"),
            "memory_gib": peak_memory() / 2**30,
        }
        write_json(path, result)
    return read_json(path)


def supervised_model(workshop: Workshop) -> Path:
    """Trains a model from random weights on the writers' answers, and returns its folder."""
    case, folder, seed = workshop.case, workshop.folder, workshop.seed
    if not (folder / "new").exists():
        examples = case.written(None, "TRAIN", f"{seed} texts")
        texts = [text for one in itertools.islice(examples, _TOKENIZER_EXAMPLES) for text in one]
        write_new_model(folder / "new", texts, seed)
    data = folder / "written.jsonl"
    run = workshop.run(
        "sft",
        "sft",
        workshop.config.sft,
        {
            "model.path": str(folder / "new"),
            "data.path": str(data),
            "training.max_steps": case.supervised_steps,
        },
    )
    if not data.exists():
        # A step's examples are new ones, so that nothing is learnt by heart; a few more are TEST's.
        count = round(1.03 * case.supervised_steps * run.batch.size)
        written = itertools.islice(case.written(None, "TRAIN", f"{seed} supervised"), count)
        write_lines(data, ({"messages": [user(p), assistant(a)]} for p, a in written))
    return fit(run).folder / "model"


def preference_pairs(workshop: Workshop) -> Path:
    """Makes pairs of the supervised model's own answers by the criterion, and returns their file.

    Raises:
      UserError: If no prompt has both answers that are right and answers that are not.
    """
    config, folder = workshop.config, workshop.folder / "pairs"
    if not (folder / "pairs.jsonl").exists():
        prompts = workshop.prompts("in-domain", "TRAIN", "pairs", config.prompts)
        settings = {
            "model": str(workshop.folder / "sft" / "model"),
            "data": {"path": str(prompts), "test_fraction": _TEST_PAIRS},
            "criteria": workshop.case.criterion,
            "samples": config.samples,
            "sampling": _sampling(1.0, workshop.seed),
            "margin": _MARGIN,
            "folder": str(folder),
        }
        made = make_pairs(PairingConfig.model_validate(settings))
        show(made.collected.summary())
        if made.pairs is None:
            raise UserError(
                f"{folder}: no prompt has both answers that pass and answers that fail; read its "
                "judgements.jsonl to see what the supervised model says"
            )
    return folder / "pairs.jsonl"


def preference_model(workshop: Workshop) -> Path:
    """Trains the supervised model by DPO on the pairs, and returns its folder."""
    run = workshop.run("dpo", workshop.case.name, workshop.config.dpo, on_pairs(workshop))
    return fit(run).folder / "model"


def best_model(workshop: Workshop) -> Path:
    """Trains the supervised model on the chosen answers alone, and returns its folder.

    The run has the pairs, steps and learning rate of the DPO run, so that the DPO loss itself is
    all that they differ in.
    """
    run = workshop.run("best", workshop.case.name, workshop.config.dpo, on_pairs(workshop))
    weight = dict(run.loss.weighted_types()).get("sft", 1.0)
    supervised = LossConfig.model_validate({"type": "sft", "weights": [weight]})
    return fit(run.model_copy(update={"loss": supervised})).folder / "model"


def on_pairs(workshop: Workshop) -> dict[str, str]:
    """Returns the paths of a run on the supervised model and its pairs, by `section.field`."""
    return {
        "model.path": str(workshop.folder / "sft" / "model"),
        "data.path": str(workshop.folder / "pairs" / "pairs.jsonl"),
    }


def evaluate(workshop: Workshop, models: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Lets the models answer the same TEST prompts, in-domain and shifted, and measures that.

    Returns:
      For each domain, temperature and model which answers failed, and their mean quality.
    """
    measured = []
    # Greedy answers of a small model fail half as often as sampled ones, so both are shown.
    asked: tuple[tuple[Domain, float], ...] = (
        ("in-domain", 1.0),
        ("in-domain", 0.0),
        ("shifted", 1.0),
    )
    for domain, temperature in asked:
        prompts = workshop.prompts(domain, "TEST", "test", workshop.config.tests)
        folder = workshop.folder / "evaluation" / f"{domain}-{temperature:g}"
        found = compare_models(workshop, models, prompts, temperature, folder)
        if (domain, temperature) == ("in-domain", 1.0):
            found[f"best of {_BEST_OF}"] = best_of_answers(workshop, models["SFT"], prompts, folder)
        measured += [
            {"domain": domain, "temperature": temperature, "model": name, **vars(each)}
            for name, each in found.items()
        ]
    return measured


def compare_models(
    workshop: Workshop,
    models: Mapping[str, Path],
    prompts: Path,
    temperature: float,
    folder: Path,
) -> dict[str, Measured]:
    """Lets models answer prompts, and measures the answers.

    Args:
      workshop: The seed of the use case.
      models: Name ↦ folder.
      prompts: The file of prompts.
      temperature: Of the sampling.
      folder: Place of the comparison's files.

    Returns:
      Name ↦ measures.
    """
    config = EvaluateConfig.model_validate(
        {
            "models": {name: str(path) for name, path in models.items()},
            "data": {"path": str(prompts)},
            "criteria": workshop.case.criterion,
            "sampling": _sampling(temperature, workshop.seed),
            "out": str(folder),
        }
    )
    comparison = compare(config)
    return {name: _measured(workshop.case, comparison, name) for name in models}


def _measured(case: UseCase, comparison: Comparison, model: str) -> Measured:
    # Each of the single criterion: a use case has one.
    failed = [
        int(not judgement.passed)
        for row in comparison.rows
        for judgement in row.judgements[model].values()
    ]
    answered = [
        (row.prompt.messages[-1]["content"], row.answers[model].completion)
        for row in comparison.rows
    ]
    return Measured(failed, mean_quality(case.quality(*each) for each in answered))


def best_of_answers(workshop: Workshop, model: Path, prompts: Path, folder: Path) -> Measured:
    """Lets the criterion choose among several answers of a model: DPO's price at inference.

    The first of them is the answer that the model has in the comparison: a sample depends on the
    seed, the prompt and its number alone.

    Args:
      workshop: The seed of the use case.
      model: Folder of the model.
      prompts: The file of prompts.
      folder: Place of the files.
    """
    config = SampleConfig.model_validate(
        {
            "model": str(model),
            "data": {"path": str(prompts)},
            "criteria": workshop.case.criterion,
            "best_of": _BEST_OF,
            "sampling": _sampling(1.0, workshop.seed),
            "out": str(folder / "best_of.jsonl"),
        }
    )
    case = workshop.case
    answers = [(each.messages[-1]["content"], each.completion) for each in sample(config)]
    judged = [case.judge(Example([user(prompt)], said)) for prompt, said in answers]
    failed = [int(not judgement.passed) for judgement in judged]
    return Measured(failed, mean_quality(case.quality(*each) for each in answers))


def _sampling(temperature: float, seed: int) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=_MAX_NEW_TOKENS,
        temperature=temperature,
        seed=seed,
        batch_size=_DECODED_TOGETHER,
    )
