"""Warnings: each fires on a run that fails that way, once, and none on a healthy one."""

import re

import pytest
import yaml

from jaxdpo.losses import LossConfig
from jaxdpo.losses.table import LOSSES
from jaxdpo.training.health import Watch
from jaxdpo.training.optimizer_config import OptimizerConfig
from jaxdpo.training.remedies import Remedies

STEPS = 100


def watching(loss=None, optimizer=None, lora=False):
    return Watch(Remedies(loss or LossConfig(), optimizer or OptimizerConfig(), lora, STEPS))


def train_metrics(step, **changes):
    """A step of a healthy run: the margin grows slowly, some gradients are clipped."""
    share = step / STEPS
    return {
        "loss": 0.69 - 0.2 * share,
        "grad_norm": 1.5 if step % 3 == 0 else 0.7,
        "rewards/margins": 1.2 * share,
        "rewards/accuracies": 0.55 + 0.25 * share,
        **changes,
    }


def test_metrics(step, **changes):
    share = step / STEPS
    return {
        "loss": 0.69 - 0.15 * share,
        "rewards/margins": 1.0 * share,
        "rewards/length_correlation": 0.2,
        "logps/chosen_per_token": -1.0 - 0.1 * share,
        "lengths/chosen": 120.0,
        "lengths/rejected": 100.0,
        "kl": 2.0 * share,
        "num_pairs": 200.0,
        **changes,
    }


test_metrics.__test__ = False


def run(train=None, test=None, watch=None):
    """Returns the warnings of a run whose metrics are changed as functions of the step."""
    watch = watch or watching()
    said = []
    for step in range(STEPS + 1):
        if step:
            said += watch.train(step, train_metrics(step, **(train(step) if train else {})))
        if step % 10 == 0:
            said += watch.test(step, test_metrics(step, **(test(step) if test else {})))
    return said


def test_a_healthy_run_is_left_alone():
    assert run() == []


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (lambda step: {"rewards/accuracies": 1.0}, None, "rewards/accuracies is 1.000"),
        (lambda step: {"rewards/margins": step}, None, "rewards/margins is 20.5 nats"),
        (lambda step: {"grad_norm": 5.0}, None, "grad_norm was over optimizer.max_grad_norm=1.0"),
        (None, lambda step: {"logps/chosen_per_token": -1 - step / 50}, "likelihood displacement"),
        (None, lambda step: {"kl": step}, "gone far from its reference"),
        (None, lambda step: {"rewards/length_correlation": 0.8}, "rewarded for their length"),
        (None, lambda step: {"loss": 0.5 + abs(step - 40) / 200}, "learns its pairs by heart"),
        (None, lambda step: {"logps/chosen_per_token": -5.0}, "loss.type=sft"),
    ],
)
def test_a_run_that_fails_is_told_so_once(train, test, says):
    said = run(train, test)
    assert len(said) == 1 and says in said[0], said
    assert said[0].startswith("warning (step ")


def test_saturation_late_in_the_run_is_success():
    assert run(lambda step: {"rewards/accuracies": 1.0 if step > 50 else 0.7}) == []


def test_chosen_log_probs_that_fall_with_the_margin_are_not_displacement():
    assert (
        run(test=lambda step: {"logps/chosen_per_token": -1 - step / 50, "rewards/margins": 0.0})
        == []
    )


def test_supervised_training_has_no_rewards():
    watch = watching(LossConfig(type=("sft",)), OptimizerConfig(max_grad_norm=None))
    for step in range(1, 40):
        assert watch.train(step, {"loss": 1.0, "grad_norm": 9.0}) == []
    metrics = {"loss": 1.0, "logps/chosen_per_token": -1.0, "lengths/chosen": 9.0, "num_pairs": 9.0}
    assert watch.test(0, metrics) == []
    assert watch.test(40, {**metrics, "logps/chosen_per_token": -0.2}) == []


FAILURES = {
    "saturated": (lambda step: {"rewards/accuracies": 1.0}, None),
    "exploded": (lambda step: {"rewards/margins": step}, None),
    "clipped": (lambda step: {"grad_norm": 5.0}, None),
    "displaced": (None, lambda step: {"logps/chosen_per_token": -1 - step / 50}),
    "drifted": (None, lambda step: {"kl": step}),
    "lengthy": (None, lambda step: {"rewards/length_correlation": 0.8}),
    "overfits": (None, lambda step: {"loss": 0.5 + abs(step - 40) / 200}),
}


@pytest.mark.parametrize(
    ("failure", "remedies"),
    [
        ("saturated", ["optimizer.learning_rate=1e-06 (now 5e-06)"]),
        (
            "exploded",
            [
                "optimizer.learning_rate=1e-06 (now 5e-06)",
                # The first step whose window's mean is over the threshold: (16 + … + 25) / 10.
                "training.max_steps=25 (now 100)",
                "loss.type=ipo (now sigmoid)",
            ],
        ),
        (
            "clipped",
            [
                "optimizer.max_grad_norm=10 (now 1)",
                "loss.beta=0.1 (now 0.2)",
                "optimizer.learning_rate=1e-06 (now 5e-06)",
            ],
        ),
        (
            "displaced",
            [
                "loss.type=[sigmoid,sft] (now sigmoid)",
                "optimizer.learning_rate=1e-06 (now 5e-06)",
            ],
        ),
        (
            "drifted",
            [
                "loss.beta=0.4 (now 0.2)",
                "optimizer.learning_rate=1e-06 (now 5e-06)",
                "training.max_steps=50 (now 100)",
            ],
        ),
        ("lengthy", ["loss.ld_alpha=0.5 (now 1)"]),
        ("overfits", ["training.max_steps=40 (now 100)", "loss.beta=0.4 (now 0.2)"]),
    ],
)
def test_a_warning_names_what_to_change_by_value(failure, remedies):
    train, test = FAILURES[failure]
    watch = watching(LossConfig(beta=0.2), OptimizerConfig(learning_rate=5e-6))
    (said,) = run(train, test, watch)
    assert re.findall(r"[Ss]et (\S+=\S+ \(now \S+?\))", said) == remedies


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mixed", [False, True])
def test_whatever_is_named_is_read_and_allowed(failure, name, mixed):
    """Every remedy of every loss makes a valid configuration, in which nothing is ignored."""
    types = (name, "sft") if mixed and name not in ("sft", "kto") else (name,)
    smoothing = 0.1 if "label_smoothing" in LOSSES[name].options else 0.0
    loss = LossConfig(type=types, label_smoothing=smoothing)
    train, test = FAILURES[failure]
    (said,) = run(train, test, watching(loss, lora=True))
    named = re.findall(r"[Ss]et (\w+)\.(\w+)=(\S+) \(now", said)
    assert named or "balance the lengths" in said.lower()
    for section, field, value in named:
        change = {field: yaml.safe_load(value)}
        if section == "loss":
            LossConfig.model_validate({**loss.model_dump(), **change})
            assert "beta" not in change or "beta" in LOSSES[name].options
        elif section == "optimizer":
            OptimizerConfig.model_validate(change)
        else:
            assert change == {"max_steps": int(value)} and 0 < int(value) <= STEPS
