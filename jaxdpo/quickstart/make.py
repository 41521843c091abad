"""Makes the quickstart's model and preference pairs: `python -m jaxdpo.quickstart.make FOLDER`.

A tokenizer is trained on the task's text, and a small Llama model on past answers, imperfect as
they are; then the model answers new requests, and its own answers, judged, become the preference
pairs: `fit` with `loss.type=sft`, then `make_pairs`, as a user would. Everything follows from the
seed.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdpo.cli.console import Reporter
from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.quickstart.new_model import write_new_model
from jaxdpo.quickstart.task import (
    SYLLABLES,
    Request,
    Split,
    make_request,
    sample_texts,
    write_answer,
)
from jaxdpo.rounds.make_pairs import PairingConfig, make_pairs
from jaxdpo.runs.fit import fit
from jaxdpo.storage.files import replacing, shipped

SEED = 0
PAIRS: Mapping[Split, int] = {"TRAIN": 1500, "TEST": 200}
# Answers of a step: two past answers to each of 24 requests.
ANSWERS_A_STEP = 48

MODEL = ModelConfig(
    vocab_size=576,
    hidden_size=128,
    num_layers=3,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32),
    mlp=MLPConfig(intermediate_size=384),
    tied_head=True,
)


@dataclass(frozen=True)
class Size:
    """Size of what is made.

    Attributes:
      steps: Optimizer steps of the supervised run.
      requests: Requests that the model answers, by split: more than pairs are wanted, because a
        request whose answers all pass or all fail makes none.
      pairs: Pairs that are written at most, by split.
      start: Model that the supervised run begins with; None for random weights.
    """

    steps: int = 1600
    requests: Mapping[Split, int] = field(default_factory=lambda: {"TRAIN": 2600, "TEST": 400})
    pairs: Mapping[Split, int] = field(default_factory=lambda: PAIRS)
    start: str | None = None


FULL = Size()
# The whole way in a minute. From random weights a few steps teach nothing that passes, and without
# passing answers there are no pairs: so it begins with the shipped model.
QUICK = Size(4, {"TRAIN": 24, "TEST": 8}, {"TRAIN": 10, "TEST": 4}, "@quickstart/model")


def past_answers(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yields past answers without end, two different ones to each request."""
    while True:
        request = make_request("TRAIN", rng)
        first = second = write_answer(request, rng)
        while second == first:
            second = write_answer(request, rng)
        for answer in (first, second):
            yield {"messages": [asked(request), {"role": "assistant", "content": answer}]}


def asked(request: Request) -> dict[str, str]:
    """Returns a request as a user's message."""
    return {"role": "user", "content": request.prompt()}


def teach(folder: Path, work: Path, size: Size) -> None:
    """Trains the supervised model and writes it as a Hugging Face folder, in bfloat16.

    Args:
      folder: The model's folder.
      work: Folder of the run and its inputs; a run that was cut off there continues.
      size: Number of steps, and the model to begin with.
    """
    rng = random.Random(SEED)
    start = work / "new" if size.start is None else Path(shipped(size.start))
    if not start.exists():
        write_new_model(start, MODEL, {"model_type": "llama"}, sample_texts(rng), SYLLABLES, SEED)
    data = work / "past_answers.jsonl"
    if not data.exists():
        answers = past_answers(rng)
        # Each answer is seen once: there is nothing to learn by heart.
        write_records(data, (next(answers) for _ in range(size.steps * ANSWERS_A_STEP)))
    given = {
        "model.path": str(start),
        "data.path": str(data),
        "data.cache_dir": str(work / "cache"),
        "batch.size": ANSWERS_A_STEP,
        "training.folder": str(work / "sft"),
        "training.max_steps": size.steps,
        "training.seed": SEED,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    taught = fit(load_config(Path(__file__).with_name("sft.yaml"), overrides)).policy
    # Half the bytes to ship, and the answers are the same to the eye.
    taught.save(folder, dtype="bfloat16")


def write_pairs(path: Path, model: Path, work: Path, size: Size) -> None:
    """Samples and judges the model's own answers, and writes the preference pairs.

    Args:
      path: The file of pairs.
      model: Folder of the model.
      work: Folder of answers and judgements.
      size: Number of requests and pairs.

    Raises:
      UserError: If there are fewer pairs than wanted.
    """
    prompts = work / "requests.jsonl"
    if not prompts.exists():
        rng = random.Random(SEED + 1)
        write_records(
            prompts,
            (
                {"messages": [asked(make_request(split, rng))], "split": split}
                for split, count in size.requests.items()
                for _ in range(count)
            ),
        )
    config = PairingConfig.model_validate(
        {
            "model": str(model),
            "data": {"path": str(prompts)},
            "criteria": "jaxdpo.quickstart.task:score",
            "samples": 8,
            "sampling": {"max_new_tokens": 64, "seed": SEED, "batch_size": 200},
            "folder": str(work / "pairs"),
        }
    )
    made = make_pairs(config, Reporter()).pairs
    found = [] if made is None else made.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in found]
    records = []
    for split, count in size.pairs.items():
        of_split = [pair for pair in pairs if pair["split"] == split]
        if len(of_split) < count:
            raise UserError(
                f"{model}: its answers make {len(of_split)} {split} pairs, and {count} are wanted; "
                "it was taught too little, or asked too few requests"
            )
        # Without scores and provenance, which nobody reads of a shipped file.
        kept = ("messages", "rejected_message", "split")
        records += [{name: pair[name] for name in kept} for pair in of_split[:count]]
    write_records(path, records)


def write_records(path: Path, records: Any) -> None:
    """Writes records as JSON Lines, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def main() -> None:
    """Makes model and pairs as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="place of model/, pairs.jsonl and work/")
    parser.add_argument("--quick", action="store_true", help="a few steps, a few pairs: a trial")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    size, work = QUICK if arguments.quick else FULL, folder / "work"
    teach(folder / "model", work, size)
    write_pairs(folder / "pairs.jsonl", folder / "model", work, size)


if __name__ == "__main__":
    main()
