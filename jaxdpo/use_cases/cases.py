"""The use cases by name."""

from jaxdpo.use_cases import hallucination, highlight, relevance, word_limit

_MODULES = (word_limit, highlight, hallucination, relevance)
CASES = {module.USE_CASE.name: module.USE_CASE for module in _MODULES}
