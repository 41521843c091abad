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
    from jaxdpo.config import RunConfig, load_config
    from jaxdpo.data.reading.reader import read_pairs
    from jaxdpo.data.tokenization.load_pairs import load_pairs
    from jaxdpo.errors import UserError
    from jaxdpo.hub.policy import Policy, load_policy
    from jaxdpo.rounds.compare import EvaluateConfig, compare
    from jaxdpo.rounds.make_pairs import PairingConfig, make_pairs
    from jaxdpo.runs.fit import RunResult, fit
    from jaxdpo.runs.score_config import ScoreConfig
    from jaxdpo.runs.score_pairs import score
    from jaxdpo.sampling import SamplingConfig, answer

__version__ = "0.1.0"

_HOMES = {
    "EvaluateConfig": "jaxdpo.rounds.compare",
    "PairingConfig": "jaxdpo.rounds.make_pairs",
    "Policy": "jaxdpo.hub.policy",
    "RunConfig": "jaxdpo.config",
    "RunResult": "jaxdpo.runs.fit",
    "SamplingConfig": "jaxdpo.sampling",
    "ScoreConfig": "jaxdpo.runs.score_config",
    "UserError": "jaxdpo.errors",
    "answer": "jaxdpo.sampling",
    "compare": "jaxdpo.rounds.compare",
    "fit": "jaxdpo.runs.fit",
    "load_config": "jaxdpo.config",
    "load_pairs": "jaxdpo.data.tokenization.load_pairs",
    "load_policy": "jaxdpo.hub.policy",
    "make_pairs": "jaxdpo.rounds.make_pairs",
    "read_pairs": "jaxdpo.data.reading.reader",
    "score": "jaxdpo.runs.score_pairs",
}

__all__ = [
    "EvaluateConfig",
    "PairingConfig",
    "Policy",
    "RunConfig",
    "RunResult",
    "SamplingConfig",
    "ScoreConfig",
    "UserError",
    "answer",
    "compare",
    "fit",
    "load_config",
    "load_pairs",
    "load_policy",
    "make_pairs",
    "read_pairs",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
