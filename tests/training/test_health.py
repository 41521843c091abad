"""Warnings: each fires on a run that fails that way, once, and none on a healthy one."""

import pytest

from jaxdpo.training.health import Watch

STEPS = 100


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
    """What is said over a run whose metrics are changed as functions of the step."""
    watch = watch or Watch(STEPS, 1.0)
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
    watch = Watch(STEPS, None)
    for step in range(1, 40):
        assert watch.train(step, {"loss": 1.0, "grad_norm": 9.0}) == []
    metrics = {"loss": 1.0, "logps/chosen_per_token": -1.0, "lengths/chosen": 9.0, "num_pairs": 9.0}
    assert watch.test(0, metrics) == []
    assert watch.test(40, {**metrics, "logps/chosen_per_token": -0.2}) == []
