"""Direct Preference Optimization in JAX: preference feedback in, an aligned model out.

    import jaxdpo

    config = jaxdpo.load_config("configs/quickstart.yaml")
    result = jaxdpo.fit(config)
    result.policy.save("aligned")

The public names are imported when first used: reading and checking data does not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdpo.annotation.config import StudioConfig
    from jaxdpo.annotation.run import studio
    from jaxdpo.config import RunConfig, load_config
    from jaxdpo.data.reading.reader import read_pairs
    from jaxdpo.data.tokenization.load_pairs import load_pairs
    from jaxdpo.errors import UserError
    from jaxdpo.feedback.to_file import CollectConfig
    from jaxdpo.feedback.to_file import collect_to_file as collect
    from jaxdpo.hub.policy import Policy, load_policy
    from jaxdpo.inspection.config import InspectConfig
    from jaxdpo.planning.plan_run import PlanConfig
    from jaxdpo.planning.plan_run import plan_run as plan
    from jaxdpo.rounds.compare import EvaluateConfig, compare
    from jaxdpo.rounds.compare import compare as evaluate
    from jaxdpo.rounds.iterate import RoundsConfig, iterate
    from jaxdpo.rounds.make_pairs import PairingConfig, make_pairs
    from jaxdpo.rounds.make_pairs import make_pairs as prefer
    from jaxdpo.rounds.sample import SampleConfig, sample
    from jaxdpo.runs.convert import ConvertConfig, convert
    from jaxdpo.runs.fit import RunResult, fit
    from jaxdpo.runs.inspection import inspect
    from jaxdpo.runs.push import PushConfig
    from jaxdpo.runs.push import push_model as push
    from jaxdpo.runs.report.command import ReportConfig, report
    from jaxdpo.runs.score_config import ScoreConfig
    from jaxdpo.runs.score_pairs import score
    from jaxdpo.runs.sweep import sweep
    from jaxdpo.sampling import SamplingConfig, answer

__version__ = "0.1.0"

# Where each public name is defined; after a colon, where it has another name there. Functions that
# are commands, too, take the settings that the command reads.
_HOMES = {
    "CollectConfig": "jaxdpo.feedback.to_file",
    "ConvertConfig": "jaxdpo.runs.convert",
    "EvaluateConfig": "jaxdpo.rounds.compare",
    "InspectConfig": "jaxdpo.inspection.config",
    "PairingConfig": "jaxdpo.rounds.make_pairs",
    "PlanConfig": "jaxdpo.planning.plan_run",
    "PushConfig": "jaxdpo.runs.push",
    "ReportConfig": "jaxdpo.runs.report.command",
    "Policy": "jaxdpo.hub.policy",
    "RoundsConfig": "jaxdpo.rounds.iterate",
    "RunConfig": "jaxdpo.config",
    "RunResult": "jaxdpo.runs.fit",
    "SampleConfig": "jaxdpo.rounds.sample",
    "SamplingConfig": "jaxdpo.sampling",
    "ScoreConfig": "jaxdpo.runs.score_config",
    "StudioConfig": "jaxdpo.annotation.config",
    "UserError": "jaxdpo.errors",
    "answer": "jaxdpo.sampling",
    "collect": "jaxdpo.feedback.to_file:collect_to_file",
    "compare": "jaxdpo.rounds.compare",
    "convert": "jaxdpo.runs.convert",
    "evaluate": "jaxdpo.rounds.compare:compare",
    "fit": "jaxdpo.runs.fit",
    "inspect": "jaxdpo.runs.inspection",
    "iterate": "jaxdpo.rounds.iterate",
    "load_config": "jaxdpo.config",
    "load_pairs": "jaxdpo.data.tokenization.load_pairs",
    "load_policy": "jaxdpo.hub.policy",
    "make_pairs": "jaxdpo.rounds.make_pairs",
    "plan": "jaxdpo.planning.plan_run:plan_run",
    "prefer": "jaxdpo.rounds.make_pairs:make_pairs",
    "push": "jaxdpo.runs.push:push_model",
    "read_pairs": "jaxdpo.data.reading.reader",
    "report": "jaxdpo.runs.report.command",
    "sample": "jaxdpo.rounds.sample",
    "score": "jaxdpo.runs.score_pairs",
    "studio": "jaxdpo.annotation.run",
    "sweep": "jaxdpo.runs.sweep",
}

__all__ = [
    "CollectConfig",
    "ConvertConfig",
    "EvaluateConfig",
    "InspectConfig",
    "PairingConfig",
    "PlanConfig",
    "Policy",
    "PushConfig",
    "ReportConfig",
    "RoundsConfig",
    "RunConfig",
    "RunResult",
    "SampleConfig",
    "SamplingConfig",
    "ScoreConfig",
    "StudioConfig",
    "UserError",
    "answer",
    "collect",
    "compare",
    "convert",
    "evaluate",
    "fit",
    "inspect",
    "iterate",
    "load_config",
    "load_pairs",
    "load_policy",
    "make_pairs",
    "plan",
    "prefer",
    "push",
    "read_pairs",
    "report",
    "sample",
    "score",
    "studio",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdpo' has no attribute {name!r}")
    return public(name)


def public(name: str) -> Any:
    """Returns the public object of this name; its module is imported if need be."""
    home, _, other = _HOMES[name].partition(":")
    return getattr(importlib.import_module(home), other or name)


def __dir__() -> list[str]:
    return sorted(__all__)
