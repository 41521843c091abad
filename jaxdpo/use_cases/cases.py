"""The use cases by name."""

from jaxdpo.use_cases import hallucination, relevance, word_limit

CASES = {module.USE_CASE.name: module.USE_CASE for module in (word_limit, hallucination, relevance)}
