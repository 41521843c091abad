"""The package reads in one voice: docstrings, comments and the size of files and functions.

`python tests/test_style.py jaxdpo/data` lists the places of one package.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxdpo"
QUESTION_WORDS = {
    "What",
    "Which",
    "Where",
    "Who",
    "Whose",
    "How",
    "Of",
    "As",
    "In",
    "Whether",
    "Why",
}
# A function's docstring says what it does: "Returns …", "Reads …", "Yields …".
VERB = re.compile(r"[A-Z][a-z-]*s\b")
NO_VERBS = {"This", "Its", "As", "Less", "Always", "Thus", "Pairs", "Plus", "Does"}
BACKWARD = re.compile(r"[Ss]ee above|[Ss]ee below|[Ll]ikewise\.|As above|as above")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def sources(package: Path = PACKAGE) -> list[Path]:
    return sorted(package.rglob("*.py"))


def definitions(path: Path) -> Iterator[Definition]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Definition):
            yield node


def is_property(node: Definition) -> bool:
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def awkward_docstrings(path: Path) -> Iterator[str]:
    module = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if module.split(" ")[0] in QUESTION_WORDS:
        yield f"{path}:1: the module's docstring begins with {module.split(' ')[0]!r}"
    for node in definitions(path):
        doc = ast.get_docstring(node)
        if doc is None:
            continue
        first = re.split(r"[\s,:;`(]", doc, maxsplit=1)[0]
        where = f"{path}:{node.lineno}: {node.name}"
        if first in QUESTION_WORDS:
            yield f"{where} begins with {first!r}"
            continue
        describes = isinstance(node, ast.ClassDef) or is_property(node)
        if not describes and (not VERB.match(first) or first in NO_VERBS):
            yield f"{where} does not begin with a verb: {doc.splitlines()[0][:60]!r}"


def missing_args(path: Path) -> Iterator[str]:
    """Finds public functions of three or more parameters whose docstring lacks `Args:`."""
    for node in definitions(path):
        if isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        doc = ast.get_docstring(node)
        if doc is not None and len(set(names) - {"self", "cls"}) >= 3 and "Args:" not in doc:
            yield f"{path}:{node.lineno}: {node.name} has no Args:"


def undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [n for n in tree.body if isinstance(n, Definition) and not n.name.startswith("_")]
    methods = [m for n in public if isinstance(n, ast.ClassDef) for m in n.body]
    for node in [*public, *(m for m in methods if isinstance(m, Definition))]:
        if not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield f"{path}:{node.lineno}: {node.name} has no docstring"


def oversized(path: Path) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > 400:
        yield f"{path}: {lines} lines, over 400"
    for node in definitions(path):
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        if not isinstance(node, ast.ClassDef) and length > 60:
            yield f"{path}:{node.lineno}: {node.name} is {length} lines long, over 60"


def backward_references(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if found := BACKWARD.search(line):
            yield f"{path}:{number}: {found[0]!r}; name the thing"


CHECKS = (awkward_docstrings, missing_args, undocumented, oversized, backward_references)


def comment_lines(paths: list[Path]) -> tuple[int, int]:
    """Counts the lines that hold a comment, and those that hold code; docstrings are neither."""
    comments, code = 0, 0
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for path in paths:
        coded: set[int] = set()
        noted: set[int] = set()
        at_start = True
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                noted.add(token.start[0])
            elif token.type not in skipped:
                if not (token.type == tokenize.STRING and at_start):
                    coded |= set(range(token.start[0], token.end[0] + 1))
                at_start = False
            if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                at_start = True
        comments, code = comments + len(noted), code + len(coded)
    return comments, code


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_file_keeps_to_the_style(check):
    found = [place for path in sources() for place in check(path)]
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_docstrings_of_tests_begin_with_what_they_state():
    """Names of tests are sentences; a docstring of one adds to it, and asks nothing."""
    found = []
    for path in sources(Path(__file__).parent):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [tree, *definitions(path)]:
            first = re.split(r"[\s,:;`(]", ast.get_docstring(node) or "", maxsplit=1)[0]
            if first in QUESTION_WORDS:
                found.append(f"{path}:{getattr(node, 'lineno', 1)} begins with {first!r}")
    assert not found, "\n".join(found)


def test_comments_say_why():
    comments, code = comment_lines(sources())
    assert comments >= 0.06 * code


if __name__ == "__main__":
    package = Path(sys.argv[1])
    for each in CHECKS:
        for one in sources(package):
            print("\n".join(each(one)), end="\n" if any(True for _ in each(one)) else "")
    notes, lines = comment_lines(sources(package))
    print(f"{notes} comment lines, {lines} code lines: {100 * notes / lines:.1f} a 100")
