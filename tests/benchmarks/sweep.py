"""Measures the time that a sweep saves: `python -m tests.benchmarks.sweep [steps]`.

Three β × two learning rates on a small random Llama and random pairs. Six commands, one after
another, against one `--sweep` of the same settings, with all parameters trained; and adapters
trained at once against one at a time. Every command is a process of its own and compiles for
itself; the tokenised pairs and the reference log-probs are there already, for all alike.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from tests.folders import write_model, write_pairs

BETAS, RATES = ("0.05", "0.1", "0.3"), ("1e-4", "3e-4")
LORA = ["lora.rank=8"]
AXES = ["--sweep", f"loss.beta={','.join(BETAS)}", f"optimizer.learning_rate={','.join(RATES)}"]


def make_inputs(folder: Path) -> None:
    """A Llama of nine million parameters, and pairs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=405,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=0,
        eos_token_id=2,
    )
    write_model(folder / "model", model=LlamaForCausalLM(config))
    write_pairs(folder / "pairs.jsonl", 400, test=32)


def seconds(folder: Path, name: str, steps: int, *more: str) -> float:
    """Wall time of one command, which starts without compiled programs."""
    command = [sys.executable, "-m", "jaxdpo.train"]
    command += [f"model.path={folder / 'model'}", f"data.path={folder / 'pairs.jsonl'}"]
    command += [f"data.cache_dir={folder / 'cache'}", f"training.folder={folder / 'runs' / name}"]
    command += [f"training.max_steps={steps}", "batch.size=16", "training.completions=0"]
    command += [f"training.evaluate_every={steps}"]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.perf_counter()
    subprocess.run([*command, *more], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main(steps: int) -> None:
    """Times the ways and prints a table."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_inputs(folder)
        seconds(folder, "first", 1)
        settings = [(beta, rate) for beta in BETAS for rate in RATES]
        alone = sum(
            seconds(
                folder,
                f"{beta}-{rate}",
                steps,
                f"loss.beta={beta}",
                f"optimizer.learning_rate={rate}",
            )
            for beta, rate in settings
        )
        swept = seconds(folder, "swept", steps, *AXES)
        apart = seconds(folder, "apart", steps, *LORA, *AXES, "at_once=1")
        at_once = seconds(folder, "at once", steps, *LORA, *AXES)
    table = Table(title=f"3 β × 2 learning rates, {steps} steps of 16 pairs, seconds")
    for name in ("", "separately", "together", "ratio"):
        table.add_column(name)
    table.add_row(
        "all parameters: six commands, one sweep", f"{alone:.1f}", f"{swept:.1f}",
        f"{swept / alone:.2f}",
    )  # fmt: skip
    table.add_row(
        "adapters of one sweep: one at a time, at once", f"{apart:.1f}", f"{at_once:.1f}",
        f"{at_once / apart:.2f}",
    )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
