"""Completions of prompts: from a model's own weights, in batches that refill themselves."""

from jaxdpo.sampling.answers import Answer, answer, complete
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.engine import (
    Completion,
    Request,
    generate,
    generate_each,
    numbered,
)
from jaxdpo.sampling.pool import Model

__all__ = [
    "Answer",
    "Completion",
    "Model",
    "Request",
    "SamplingConfig",
    "answer",
    "complete",
    "generate",
    "generate_each",
    "numbered",
]
