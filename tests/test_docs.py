"""What the documents name exists: files, the functions in them, commands and settings files."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"`((?:jaxdpo|tests|configs|notebooks|docs)/[\w/.-]+\.\w+)`(?: `(\w+)`)?")
# `jaxdpo.COMMAND` stands for all of them.
COMMAND = re.compile(r"python -m ((?:jaxdpo|tests)(?:\.[a-z]\w*)*)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_functions_commands_and_links_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for path, name in PATH.findall(text):
        assert (ROOT / path).exists(), path
        if name:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            defined = {getattr(node, "name", None) for node in ast.walk(tree)}
            assert name in defined, f"{path} has no {name}"
    for module in COMMAND.findall(text):
        assert importlib.util.find_spec(module) is not None, module
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link
