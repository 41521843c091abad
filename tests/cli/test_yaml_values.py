"""YAML from strangers is read or refused by line, in bounded time."""

import random
import time

import pytest
import yaml

from jaxdpo.cli.settings import load_settings
from jaxdpo.cli.yaml_values import InvalidYaml, load_yaml
from jaxdpo.config import RunConfig
from jaxdpo.errors import UserError

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(30)
)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        (BOMB, "more than 100000 values", None),
        ("a: &a [*a]", "more than 100000 values", None),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply", None),
        ("x: 1\n? [a, b]\n: 1", "a key must be a text or a number", 2),
        ("x: 1\nday: 2026-99-99", "month must be in 1..12", 2),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice", 3),
        ("a: \x00", "unacceptable character", None),
        ("a: b: c", "mapping values are not allowed here", 1),
        ("a: !!python/object:os.system x", "could not determine a constructor", 1),
        ("a: 1\n---\nb: 2", "but found another document", 2),
        ("a: *b", "found undefined alias", 1),
        ("x" * 1_000_001, "has 1000001 characters", None),
    ],
)
def test_what_is_refused(text, problem, line):
    start = time.process_time()
    with pytest.raises(InvalidYaml, match=problem) as refused:
        load_yaml(text)
    assert refused.value.line == line
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "a: &one {b: 1}\nc: {<<: *one, d: 2}",
        "a: &one [1, 2]\nc: *one",
        "day: 2026-11-24",
        "? a\n: 1",
        "",
        "3",
        "[1, 2.5, null, true, x]",
    ],
)
def test_what_is_read_is_what_pyyaml_reads(text):
    assert load_yaml(text) == yaml.safe_load(text)


def test_no_text_ends_in_a_traceback(tmp_path):
    """Pieces of YAML put together at random: settings, or an error that names the file."""
    pieces = [
        "loss",
        "beta",
        ": ",
        ":",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!",
        "!x ",
    ]
    pieces += [
        "'",
        '"',
        "|",
        ">",
        "#",
        "%",
        "@",
        "? ",
        "<<",
        "0.1",
        "2026-13-01",
        "1e9",
        "null",
        "\t",
        "é",
    ]
    generator, file = random.Random(0), tmp_path / "run.yaml"
    for _ in range(1000):
        file.write_text("".join(generator.choices(pieces, k=generator.randrange(1, 12))))
        with pytest.raises(UserError, match=r"run\.yaml"):
            load_settings(RunConfig, file)
