"""The use cases by name."""

from jaxdpo.use_cases import hallucination, highlight, relevance, word_limit
from jaxdpo.use_cases.systematic import SYSTEMATIC

_MODULES = (word_limit, highlight, hallucination, relevance)
# Names that stand for several use cases: by how their writers are wrong, at random and rarely, or
# systematically and in most places.
GROUPS = {
    "all": tuple(module.USE_CASE.name for module in _MODULES),
    "systematic": tuple(case.name for case in SYSTEMATIC),
}
CASES = {case.name: case for case in (*(module.USE_CASE for module in _MODULES), *SYSTEMATIC)}
