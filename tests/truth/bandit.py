"""Answers of one token, through the whole program: a file of token ids to a model read in torch."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

# Tokens of the model of `tests.folders` that are no control tokens.
FIRST_ANSWER = 100


def answer_id(answer: int) -> int:
    """The token of an answer."""
    return FIRST_ANSWER + answer


Comparison = tuple[tuple[int, ...], int, int, float]


def write_comparisons(path: Path, compared: Iterable[Comparison]) -> list[str]:
    """Writes comparisons of answers as pairs of token ids, equal ones as one line with a weight.

    Args:
      path: The file.
      compared: Prompt ids, chosen answer, rejected answer, and weight of each.

    Returns:
      The settings of a run that takes all of them in each step.
    """
    weights: Counter[tuple[tuple[int, ...], int, int]] = Counter()
    for prompt, chosen, rejected, weight in compared:
        weights[prompt, chosen, rejected] += weight  # type: ignore[assignment]
    # A mean of 1 for each prompt: none of them counts more than the others.
    by_prompt: dict[tuple[int, ...], list[float]] = {}
    for (prompt, _, _), weight in weights.items():
        by_prompt.setdefault(prompt, []).append(weight)
    lines = [
        {
            "prompt_ids": prompt,
            "chosen_ids": [answer_id(chosen)],
            "rejected_ids": [answer_id(rejected)],
            "split": "TRAIN",
            "metadata": {"weight": weight / fmean(by_prompt[prompt])},
        }
        for (prompt, chosen, rejected), weight in weights.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Rows of 128 tokens; a pair has a prompt of three and two answers of one.
    rows = -(-len(lines) // (128 // 5))
    return [
        "data.weight_key=weight",
        f"batch.size={len(lines)}",
        "batch.row_length=128",
        f"batch.rows_per_device={rows}",
    ]


def train(model: Path, data: Path, run: Path, *overrides: str) -> Path:
    """Runs `python -m jaxdpo.train` on a machine with one device, and returns the exported model.

    Args:
      model: Folder of the model that training starts from.
      data: File of pairs.
      run: The run folder.
      overrides: `section.field=value`.
    """
    settings = [
        f"model.path={model}",
        f"data.path={data}",
        f"data.cache_dir={run.parent / 'cache'}",
        "data.max_length=32",
        f"training.folder={run}",
        "training.completions=0",
        "training.watch.prompts=0",
        "optimizer.learning_rate=1e-2",
        "optimizer.max_grad_norm=null",
        "checkpoint.every=100000",
        *overrides,
    ]
    # The tests have eight devices; one is what a user's CPU has. Compiled without optimisation, as
    # in the tests: these programs run for seconds.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxdpo.train", *settings],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run / "model"


def answer_logps(model: Path, prompt: Sequence[int], answers: int) -> np.ndarray:
    """log π of each answer to a prompt, f64 `[answers]`, as torch reads the folder."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = loaded(torch.tensor([list(prompt)])).logits[0, -1].double()
    logps = torch.log_softmax(logits, -1).numpy()
    return logps[FIRST_ANSWER : FIRST_ANSWER + answers]
