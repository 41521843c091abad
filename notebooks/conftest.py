"""Which notebooks run with the tests."""

import os

import pytest

# Each teaches a model from random weights, in minutes; the last a model that a package brings.
LONG = ("02_word_limit", "03_highlight", "04_hallucination", "05_relevance", "06_smollm2")


# First, because pytest chooses by mark in this hook, too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the quickstart as slow, and skips the long ones, unless JAXDPO_TEST_NOTEBOOKS=all."""
    everything = os.environ.get("JAXDPO_TEST_NOTEBOOKS") == "all"
    for item in items:
        if item.path.stem == "01_quickstart":
            item.add_marker(pytest.mark.slow)
        elif item.path.stem in LONG and not everything:
            item.add_marker(pytest.mark.skip(reason="minutes long: JAXDPO_TEST_NOTEBOOKS=all"))
