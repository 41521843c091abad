"""A contestant's training run in a process of its own: `python -m tests.benchmarks.contestants`.

Takes a JSON object (see `Task`) and prints one: seconds of start, reference pass and each step,
peak memory, compiles, and loss and gradient norm of each step.
"""

import itertools
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

STARTED = time.perf_counter()


@dataclass(frozen=True)
class Task:
    """The training that a contestant runs.

    Attributes:
      side: "jaxdpo" or "trl".
      model: Hugging Face folder.
      pairs: File of token ids.
      batch: Pairs of an optimizer step.
      steps: Optimizer steps; the first compiles.
      device: "cpu", in fp32, or "gpu", in bf16.
      adapter: PEFT folder that both start from, for LoRA; None trains all parameters.
      folder: Where it may write.
      options: Of jaxdpo, `section.field=value`, and `WHOLE_HEAD`; of TRL, fields of DPOConfig.
    """

    side: str
    model: str
    pairs: str
    batch: int
    steps: int
    device: str
    adapter: str | None = None
    folder: str = ""
    options: dict = field(default_factory=dict)


RATE, BETA, RANK, ALPHA = 1e-4, 0.1, 16, 32.0
# An option that no user has: the vocabulary head takes a microbatch at once.
WHOLE_HEAD = "whole head"


def jaxdpo(task: Task) -> dict:
    """Our step, through what `fit` runs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxdpo.cli.console import Reporter
    from jaxdpo.config import load_config
    from jaxdpo.devices.machine import peak_memory
    from jaxdpo.devices.sharding import make_mesh
    from jaxdpo.hub.policy import load_policy
    from jaxdpo.runs.folder import open_run_folder
    from jaxdpo.runs.setup import set_up
    from jaxdpo.scoring import logprobs
    from jaxdpo.training.loop import run_steps
    from jaxdpo.training.metrics import LaggedMetrics
    from jaxdpo.training.state import begin, init_state
    from jaxdpo.training.step import make_train_step

    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: (
            compiled.append(seconds) if name.endswith("backend_compile_duration") else None
        )
    )
    settings = {
        "model.path": task.model,
        "data.path": task.pairs,
        "data.test_fraction": 0.0,
        "data.max_length": 4096,
        "data.cache_dir": f"{task.folder}/cache",
        "batch.size": task.batch,
        "loss.beta": BETA,
        "optimizer.learning_rate": RATE,
        "training.folder": f"{task.folder}/run",
        "training.max_steps": task.steps,
        "training.epochs": 1000,
    }
    if task.adapter is not None:
        settings |= {"lora.rank": RANK, "lora.alpha": ALPHA}
    settings |= {name: value for name, value in task.options.items() if name != WHOLE_HEAD}
    if WHOLE_HEAD in task.options:
        logprobs.CHUNK_LOGITS |= dict.fromkeys(logprobs.CHUNK_LOGITS, 2**62)
    config = load_config(None, [f"{name}={value}" for name, value in settings.items()])
    mesh = make_mesh(config.mesh)
    with open_run_folder(config) as folder, jax.set_mesh(mesh):
        before = time.perf_counter()
        run = set_up(config, None, None, mesh, folder, Reporter(quiet=True))
        prepared = time.perf_counter() - before
        state, frozen = begin(run.objective, run.optimizer, run.policy.params, mesh)
        if task.adapter is not None:
            adapters = load_policy(task.adapter).lora
            assert adapters is not None
            state = init_state(jax.tree.map(jnp.asarray, adapters), run.optimizer, mesh)
        train_step = make_train_step([run.objective], [run.optimizer], mesh, state)
        compiled.clear()
        lagged, records = LaggedMetrics(), []
        clock = [time.perf_counter()]
        steps = run_steps(train_step, state, frozen, run.train, run.plan, mesh, 0)
        for number, after, metrics in steps:
            jax.block_until_ready((after, metrics))
            clock.append(time.perf_counter())
            records.append(lagged.push(number, metrics))
        records = [record[1] for record in [*records[1:], lagged.flush()] if record is not None]
        shape = run.train.shape
    return {
        "prepared": prepared,
        "first": clock[1] - STARTED,
        "steps": np.diff(clock).tolist(),
        "compiles": sum(seconds > 0.2 for seconds in compiled),
        "loss": [record["loss"] for record in records],
        "grad_norm": [record["grad_norm"] for record in records],
        "efficiency": float(np.mean([record["packing_efficiency"] for record in records])),
        "shape": str(shape),
        "memory_gib": peak_memory() / 2**30,
    }


def trl(task: Task) -> dict:
    """TRL's DPOTrainer on the same ids, in the same order."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]  # lazy

    torch.set_num_threads(2)
    clock: list[float] = []

    class Given(DPOTrainer):
        """Takes ids as they are, in their order."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            clock.append(time.perf_counter())

        def on_step_end(self, args, state, control, **_):
            clock.append(time.perf_counter())

    rows = [json.loads(line) for line in Path(task.pairs).read_text().splitlines()]
    order = _order(task, len(rows))
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    if task.adapter is not None:
        model = PeftModel.from_pretrained(model, task.adapter, is_trainable=True)
    settings = {
        "output_dir": f"{task.folder}/trl",
        "use_cpu": task.device == "cpu",
        "bf16": task.device == "gpu",
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "max_length": None,
        "beta": BETA,
        "learning_rate": RATE,
        "per_device_train_batch_size": task.batch,
        "max_steps": task.steps,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    before = time.perf_counter()
    trainer = Given(
        model=model,
        args=DPOConfig(**settings | task.options),
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        callbacks=[Clock()],
    )
    prepared = time.perf_counter() - before
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if task.device == "gpu":
        peak = torch.cuda.max_memory_allocated()
    logs = [log for log in trainer.state.log_history if "rewards/margins" in log]
    return {
        "prepared": prepared,
        "first": clock[1] - STARTED,
        "steps": [after - before for before, after in itertools.pairwise(clock)],
        "compiles": 0,
        "loss": [log["loss"] for log in logs],
        "grad_norm": [log["grad_norm"] for log in logs],
        "memory_gib": peak / 2**30,
    }


def _order(task: Task, count: int) -> list[int]:
    """The pairs in the order of our plan: a permutation an epoch, one after another."""
    import numpy as np

    from jaxdpo.data.packing.plan import BatchConfig, Packer, make_train_plan

    packer = Packer(np.ones((count, 3), np.int32), BatchConfig(size=task.batch), 1, 8)
    plan = make_train_plan(packer, 0, 1000.0, task.steps)
    return [int(index) for step in range(task.steps) for index in plan.pairs(step)]


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    result = {"jaxdpo": jaxdpo, "trl": trl}[task.side](task)
    print("RESULT " + json.dumps({"task": asdict(task), **result}))


if __name__ == "__main__":
    main()
