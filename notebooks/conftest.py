"""Which notebooks run with the tests."""

import os

import pytest

# Each teaches a model from random weights, in minutes; the last a model that a package brings.
LONG = ("02_word_limit", "03_highlight", "04_hallucination", "05_relevance", "06_smollm2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the long ones out, unless JAXDPO_TEST_NOTEBOOKS=all."""
    if os.environ.get("JAXDPO_TEST_NOTEBOOKS") == "all":
        return
    for item in items:
        if item.path.stem in LONG:
            item.add_marker(pytest.mark.skip(reason="minutes long: JAXDPO_TEST_NOTEBOOKS=all"))
