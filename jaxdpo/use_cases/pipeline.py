"""From a use case to its proof, all through the public API; read `run_seed` downwards."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxdpo.config import RunConfig, load_config
from jaxdpo.data.pairs import Message
from jaxdpo.data.writing import write_pairs
from jaxdpo.devices.machine import peak_memory
from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.feedback.collecting import collect
from jaxdpo.feedback.preferences import FeedbackConfig
from jaxdpo.hub.policy import Policy
from jaxdpo.runs.fit import fit
from jaxdpo.sampling import SamplingConfig, answer
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.model import write_new_model
from jaxdpo.use_cases.task import Domain, UseCase, mean_quality

SETTINGS = Path(__file__).parent
# Examples that the tokenizer is trained on.
_TOKENIZER_EXAMPLES = 1000
# The longest answer has fewer.
_MAX_NEW_TOKENS = 48
# Answers of the supervised model that the criterion chooses from, in the bar "best of 4".
_BEST_OF = 4
# All answers that pass and are whole against all that are not. What a model says need not be fit to
# be trained on, such as nothing at all: it is left out and counted.
_COLLECTING = FeedbackConfig(margin=0.5, test_fraction=0.05, on_error="skip")


class Answered(NamedTuple):
    """A prompt with an answer, judged."""

    prompt: str
    completion: str
    judgement: Judgement


@dataclass(frozen=True)
class Workshop:
    """One seed of one use case: where its files lie, and how long its stages took.

    Attributes:
      case: The use case.
      config: Sizes.
      seed: The seed.
      folder: Of this seed.
    """

    case: UseCase
    config: UseCasesConfig
    seed: int
    folder: Path

    def settings(self, name: str, overrides: Sequence[str], given: dict[str, Any]) -> RunConfig:
        """The run configuration of a file that comes with the use cases.

        Args:
          name: Of the file.
          overrides: What the user has set.
          given: What is set here.
        """
        given = {
            "training.seed": self.seed,
            "data.cache_dir": str(self.folder / "cache"),
            **given,
        }
        own = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        return load_config(SETTINGS / f"{name}.yaml", [*own, *overrides])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds a stage's time to `seconds.json`: on the clock, and of all processor cores."""
        path, wall, cpu = self.folder / "seconds.json", time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = read_json(path) if path.exists() else {}
            before = spent.get(stage, {"wall": 0.0, "cpu": 0.0})
            spent[stage] = {
                "wall": before["wall"] + time.perf_counter() - wall,
                "cpu": before["cpu"] + time.process_time() - cpu,
            }
            write_json(path, spent)


def run_seed(case: UseCase, config: UseCasesConfig, seed: int) -> dict[str, Any]:
    """One seed of a use case, from random weights to measured failures.

    What is finished already is not done again.

    Returns:
      What `result.json` in the seed's folder holds.
    """
    workshop = open_workshop(case, config, seed)
    path = workshop.folder / "result.json"
    if not path.exists():
        with workshop.timed("supervised"):
            sft = supervised_model(workshop)
        with workshop.timed("pairs"):
            pairs = preference_pairs(workshop, sft)
        with workshop.timed("dpo"):
            dpo = preference_model(workshop, sft, pairs)
        with workshop.timed("sft on best"):
            best = best_model(workshop, sft, pairs)
        with workshop.timed("evaluation"):
            measured = evaluate(workshop, {"SFT": sft, "SFT on best": best, "DPO": dpo})
        result = {
            "seed": seed,
            "pairs": len(pairs.read_text(encoding="utf-8").splitlines()),
            "measured": measured,
            "seconds": read_json(workshop.folder / "seconds.json"),
            "memory_gib": peak_memory() / 2**30,
        }
        write_json(path, result)
    return read_json(path)


def open_workshop(case: UseCase, config: UseCasesConfig, seed: int) -> Workshop:
    """The workshop of a seed, in its folder.

    Raises:
      UserError: If what lies there was made under different settings.
    """
    folder = Path(config.folder) / case.name / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    check_continues(config, folder / "sizes.json")
    return Workshop(case, config, seed, folder)


def check_continues(config: UseCasesConfig, path: Path) -> None:
    """Refuses to mix what was made under different settings.

    Raises:
      UserError: Naming what differs.
    """
    sizes = config.model_dump(mode="json", exclude={"folder", "size", "seeds"})
    if not path.exists():
        write_json(path, sizes)
    before = read_json(path)
    changed = [f"{name} was {before[name]}" for name in sizes if before[name] != sizes[name]]
    if changed:
        raise UserError(
            f"{path.parent} was made with other settings: {', '.join(changed)}. Put them back to "
            "continue, or set folder to a new one"
        )


def supervised_model(workshop: Workshop) -> Policy:
    """A model taught from random weights on what the writers wrote."""
    case, folder, seed = workshop.case, workshop.folder, workshop.seed
    if not (folder / "new").exists():
        examples = case.written(None, "TRAIN", f"{seed} texts")
        texts = [text for one in itertools.islice(examples, _TOKENIZER_EXAMPLES) for text in one]
        write_new_model(folder / "new", texts, seed)
    data = folder / "written.jsonl"
    paths = {
        "model.path": str(folder / "new"),
        "data.path": str(data),
        "training.folder": str(folder / "sft"),
    }
    steps = {"training.max_steps": case.supervised_steps}
    settings = workshop.settings("sft", workshop.config.sft, {**steps, **paths})
    if not data.exists():
        # A step's examples are new ones; a few more are TEST's.
        count = round(1.03 * case.supervised_steps * settings.batch.size)
        written = itertools.islice(case.written(None, "TRAIN", f"{seed} supervised"), count)
        write_lines(data, ({"messages": conversation(*example)} for example in written))
    return fit(settings).policy


def preference_pairs(workshop: Workshop, sft: Policy) -> Path:
    """Pairs of the supervised model's own answers, judged by the criterion."""
    case, config, folder = workshop.case, workshop.config, workshop.folder
    judged, path = folder / "judged.jsonl", folder / "pairs.jsonl"
    if not path.exists():
        prompts = take(case, "home", "TRAIN", f"{workshop.seed} pairs", config.prompts)
        answered = answer_all(case, sft, prompts, config.samples, 1.0, workshop.seed)
        write_lines(judged, (record(a) for answers in answered for a in answers))
        collected = collect("criteria", str(judged), _COLLECTING)
        print(collected.summary())
        if not collected.pairs:
            raise UserError(
                f"{judged}: no prompt has both answers that pass and answers that fail; see what "
                "the supervised model says there"
            )
        write_pairs(collected.pairs, path)
    return path


def preference_model(workshop: Workshop, sft: Policy, pairs: Path) -> Policy:
    """The supervised model after DPO."""
    return fit(on_pairs(workshop, pairs, "dpo", workshop.config.dpo, {}), sft).policy


def best_model(workshop: Workshop, sft: Policy, pairs: Path) -> Policy:
    """The supervised model after the same run on the chosen answers alone: all but the DPO loss."""
    dpo = on_pairs(workshop, pairs, "dpo", workshop.config.dpo, {}).loss
    same = [override for override in workshop.config.dpo if not override.startswith("loss.")]
    weight = dict(dpo.weighted_types()).get("sft", 1.0)
    supervised = {"loss": {"type": "sft", "weights": [weight]}}
    return fit(on_pairs(workshop, pairs, "best", same, supervised), sft).policy


def on_pairs(
    workshop: Workshop,
    pairs: Path,
    folder: str,
    overrides: Sequence[str],
    given: dict[str, Any],
) -> RunConfig:
    """The run configuration of a run on the pairs, in a folder of the workshop."""
    paths = {
        "model.path": str(workshop.folder / "sft" / "model"),
        "data.path": str(pairs),
        "training.folder": str(workshop.folder / folder),
    }
    return workshop.settings(workshop.case.name, overrides, {**paths, **given})


def evaluate(workshop: Workshop, models: dict[str, Policy]) -> list[dict[str, Any]]:
    """The models' answers to the same TEST prompts, at home and away, measured.

    Returns:
      For each domain, temperature and model which answers failed, and their mean quality.
    """
    case, seed = workshop.case, workshop.seed
    measured = []
    asked: tuple[tuple[Domain, float], ...] = (("home", 1.0), ("home", 0.0), ("away", 1.0))
    for domain, temperature in asked:
        prompts = take(case, domain, "TEST", f"{seed} test", workshop.config.tests)
        for name, policy in models.items():
            choosing = name == "SFT" and (domain, temperature) == ("home", 1.0)
            samples = _BEST_OF if choosing else 1
            answered = answer_all(case, policy, prompts, samples, temperature, seed)
            shown = {name: [answers[0] for answers in answered]}
            if choosing:
                shown[f"best of {samples}"] = [
                    max(answers, key=lambda a: a.judgement.value) for answers in answered
                ]
            for said, of_model in shown.items():
                where = {"domain": domain, "temperature": temperature, "model": said}
                measured.append(where | summary(case, of_model))
                file = f"{domain}-{temperature:g}-{said.replace(' ', '_')}.jsonl"
                write_lines(workshop.folder / "answers" / file, (record(a) for a in of_model))
    return measured


def summary(case: UseCase, answered: Sequence[Answered]) -> dict[str, Any]:
    """Which answers failed, and the mean of each measure of quality."""
    return {
        "failed": [int(not a.judgement.passed) for a in answered],
        "quality": mean_quality(case.quality(a.prompt, a.completion) for a in answered),
    }


def take(case: UseCase, domain: Domain, split: Any, seed: str, count: int) -> list[str]:
    """Different prompts."""
    return [e.prompt for e in itertools.islice(case.written(domain, split, seed), count)]


def answer_all(
    case: UseCase,
    policy: Policy,
    prompts: Sequence[str],
    samples: int,
    temperature: float,
    seed: int,
) -> list[list[Answered]]:
    """Several answers to each prompt, judged."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    sampling = SamplingConfig(
        max_new_tokens=_MAX_NEW_TOKENS, temperature=temperature, seed=seed, batch_size=256
    )
    asked = [[message("user", prompt)] for prompt in repeated]
    judged = [
        Answered(prompt, completion, case.judge(Example(messages, completion)))
        for prompt, messages, completion in zip(
            repeated, asked, answer(policy, asked, sampling), strict=True
        )
    ]
    return [judged[start : start + samples] for start in range(0, len(judged), samples)]


def conversation(prompt: str, completion: str) -> list[Message]:
    return [message("user", prompt), message("assistant", completion)]


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def record(answered: Answered) -> dict[str, Any]:
    """A line of judgements."""
    return {
        "messages": [message("user", answered.prompt)],
        "completion": answered.completion,
        **answered.judgement.model_dump(),
    }


def write_lines(path: Path, records: Any) -> None:
    """Writes records as JSON Lines, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole."""
    with replacing(path) as file:
        json.dump(value, file, indent=1)


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))
