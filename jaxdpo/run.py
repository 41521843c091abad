"""One training run, from configuration to exported model; read `fit` downwards."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdpo.compiling import keep_compiled
from jaxdpo.config import RunConfig
from jaxdpo.console import Reporter
from jaxdpo.data.tokenizing import LoadedPairs
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.decoder import Params
from jaxdpo.prepare import Prepared, prepare
from jaxdpo.record import Recorder
from jaxdpo.run_folder import RunFolder, open_run_folder
from jaxdpo.sampling import generate
from jaxdpo.sharding import make_mesh
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.loop import run_steps
from jaxdpo.training.optimizer import make_optimizer, make_schedule
from jaxdpo.training.signals import StopRequest, stop_on_sigterm
from jaxdpo.training.step import MovingReference, Objective, init_state, make_train_step
from jaxdpo.training.writers import METRICS_FILE, plot_curves, read_metrics

# What a shell reports of a process that SIGTERM ended.
_STOPPED = 128 + 15


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
      folder: The run folder.
      policy: The aligned model.
      summary: TEST metrics and completions before and after, and where everything lies.
      history: The records of metrics.jsonl.
    """

    folder: Path
    policy: Policy
    summary: dict[str, Any]
    history: list[dict[str, Any]]


def fit(
    config: RunConfig, policy: Policy | None = None, pairs: LoadedPairs | None = None
) -> RunResult:
    """Aligns a model with preference pairs by DPO.

    The same call on the same run folder continues a run that was cut off, from its last checkpoint
    and with the same pairs.

        config = load_config("configs/quickstart.yaml", ["training.folder=runs/first"])
        result = fit(config)
        result.policy.save("aligned")

    Args:
      config: The run.
      policy: A model in memory, instead of the one at `model.path`; it is left as it is.
      pairs: Tokenised pairs in memory, instead of those at `data.path`.

    Raises:
      UserError: For whatever the user can mend.
      SystemExit: With status 143, after a SIGTERM; the state is saved.
    """
    keep_compiled(config.data.cache_folder() / "compiled")
    mesh = make_mesh(config.mesh)
    first_process = jax.process_index() == 0
    reporter = Reporter(quiet=not first_process)
    with (
        open_run_folder(config, writes=first_process) as folder,
        jax.set_mesh(mesh),
    ):
        summary = folder.read_json("summary.json")
        if summary is not None:
            reporter.say(f"{folder.path}: this run is finished; set training.folder for a new one")
            final = load_policy(
                str(folder.path / "model"),
                config.model.param_dtype,
                mesh,
                context=config.data.max_length,
            )
            return RunResult(folder.path, final, summary, read_metrics(folder.path))
        run = prepare(config, policy, pairs, mesh, folder, reporter)
        before = _complete(config, run, run.policy, folder, "before")
        with stop_on_sigterm() as stop:
            trained = _train(config, run, mesh, folder, reporter, stop)
        final = _trained_policy(run, trained)
        after = _complete(config, run, final, folder, "after")
        reporter.say(f"exporting to {folder.path / 'model'}")
        final.save(folder.path / "model", lora=config.export.lora, dtype=config.export.dtype)
        history = read_metrics(folder.path)
        summary = _summarise(run, folder, history, list(zip(before, after, strict=True)))
        if first_process:
            plot_curves(history, folder.path / "curves.png")
        folder.write_json("summary.json", summary)
        show_summary(reporter, summary)
        return RunResult(folder.path, final, summary, history)


def _train(
    config: RunConfig,
    run: Prepared,
    mesh: Mesh,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopRequest,
) -> Params:
    """The optimizer steps, with evaluations and checkpoints between them; returns the trained."""
    num_steps = run.train.plan.num_steps
    schedule = make_schedule(config.optimizer, num_steps, lora=config.lora is not None)
    optimizer = make_optimizer(config.optimizer, schedule)
    moving = config.reference_kind == "moving"
    reference = jax.tree.map(jnp.copy, run.frozen) if moving else None
    state = init_state(run.trainable, optimizer, mesh, reference)
    checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint.keep)
    state = checkpoints.restore(jax.tree.map(_abstract, state)) or state
    first_step = int(state.step)
    if first_step:
        reporter.say(f"continuing after step {first_step}")
    objective = Objective(
        run.policy.config,
        run.compute,
        config.loss,
        config.batch.size,
        config.training.seed,
        has_reference=config.reference_kind != "none",
        moving=MovingReference(*config.reference.moves) if moving else None,
    )
    train_step = make_train_step(objective, optimizer, schedule, mesh, state)
    evaluate_every = config.training.evaluate_every or -(-num_steps // 10)
    with reporter.progress(num_steps, first_step) as bar:
        recorder = Recorder(config, run, mesh, folder, reporter, bar, first_step)
        if first_step % evaluate_every == 0 or first_step == num_steps:
            recorder.evaluate(first_step, state.trainable, stop)
        if stop.asked and jax.process_count() == 1:
            _exit_stopped(checkpoints, reporter, first_step)
        steps = run_steps(train_step, state, run.frozen, run.train, mesh, first_step)
        for step, state, metrics in steps:
            recorder.step(step, metrics)
            last = step == num_steps
            saving = last or step % config.checkpoint.every == 0
            evaluating = last or step % evaluate_every == 0
            # The first step's metrics are checked before there is a second; and nothing is saved
            # that has not been checked.
            if step == 1 or saving or evaluating:
                recorder.flush()
            if saving:
                checkpoints.save(step, state)
            if evaluating:
                recorder.evaluate(step, state.trainable, stop)
            if _stop_asked(stop, step):
                recorder.flush()
                checkpoints.save(step, state)
                _exit_stopped(checkpoints, reporter, step)
        recorder.close()
    checkpoints.wait()
    return state.trainable


def _exit_stopped(checkpoints: Checkpoints, reporter: Reporter, step: int) -> NoReturn:
    checkpoints.wait()
    done = f"saved after step {step}" if step else "stopped before the first step"
    reporter.say(f"SIGTERM: {done}; run it again to continue")
    sys.exit(_STOPPED)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _stop_asked(stop: StopRequest, step: int) -> bool:
    # All processes must stop after the same step; JAX's service agrees on one.
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return stop.asked


def _trained_policy(run: Prepared, trainable: Params) -> Policy:
    if run.compute.lora is None:
        return replace(run.policy, params=trainable)
    return replace(run.policy, lora=trainable, lora_config=run.compute.lora)


def _complete(
    config: RunConfig, run: Prepared, policy: Policy, folder: RunFolder, when: str
) -> list[str]:
    """The policy's answers to the first TEST prompts, kept in `completions_<when>.json`."""
    if run.test is None:
        return []
    source = run.test.source
    count = min(config.training.completions, len(source))
    name = f"completions_{when}.json"
    kept = folder.read_json(name)
    if kept is not None:
        return kept
    prompts = [source[index].prompt_ids.tolist() for index in range(count)]
    completions = generate(
        policy.config,
        policy.params,
        policy.lora,
        prompts,
        config.sampling,
        policy.chat.stop_token_ids,
        run.compute,
    )
    texts = [policy.chat.decode(completion.ids) for completion in completions]
    folder.write_json(name, texts)
    return texts


def _summarise(
    run: Prepared, folder: RunFolder, history: list[dict[str, Any]], texts: list[tuple[str, str]]
) -> dict[str, Any]:
    """What a finished run says of itself."""
    tested = [record for record in history if record["split"] == "TEST"]
    speeds = [record["pairs_per_second"] for record in history if "pairs_per_second" in record]
    path, completions = folder.path, []
    for index, (before, after) in enumerate(texts):
        assert run.test is not None
        prompt = run.policy.chat.decode(run.test.source[index].prompt_ids.tolist())
        completions.append({"prompt": prompt.strip(), "before": before, "after": after})
    return {
        "steps": run.train.plan.num_steps,
        "pairs_per_second": float(np.median(speeds)) if speeds else None,
        "test": {"before": tested[0], "after": tested[-1]} if tested else None,
        "completions": completions,
        "files": {
            "aligned model": str(path / "model"),
            "curves": str(path / "curves.png"),
            "metrics": str(path / METRICS_FILE),
            "TensorBoard": str(path / "tensorboard"),
            "checkpoints": str(path / "checkpoints"),
            "configuration": str(path / "config.yaml"),
        },
    }


def show_summary(reporter: Reporter, summary: dict[str, Any]) -> None:
    """Shows what a run achieved, and where everything lies."""
    if summary["completions"]:
        rows = [(c["prompt"], c["before"], c["after"]) for c in summary["completions"]]
        reporter.table("TEST prompts, answered", ("prompt", "before", "after"), rows)
    if summary["test"]:
        before, after = summary["test"]["before"], summary["test"]["after"]
        names = ("rewards/accuracies", "rewards/margins", "loss", "logps/chosen", "logps/rejected")
        rows = [
            (name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in names if name in after
        ]
        reporter.table("TEST pairs", ("metric", "before", "after"), rows)
    reporter.table("Files", ("what", "where"), list(summary["files"].items()))
