"""The offer of `import jaxdpo`: every command as a function, taking the command's own settings."""

import importlib
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import jaxdpo
from jaxdpo.__main__ import COMMANDS

# `fit` is the function of `train`; the others run until they are stopped, write examples, or tend
# the files of this machine.
FUNCTIONS = sorted({*COMMANDS} - {"train", "init", "use_cases", "serve", "studio", "cache"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_is_a_function_whether_or_not_its_module_is_imported(name):
    function = jaxdpo.public(name)
    (config, *others) = inspect.signature(function).parameters.values()
    assert all(other.default is not inspect.Parameter.empty for other in others)
    module: Any = importlib.import_module(f"jaxdpo.{name}")
    assert getattr(jaxdpo, name) in (module, function)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        module()
    assert config.name == "config"


def test_every_public_name_is_there():
    assert sorted(jaxdpo.__all__) == dir(jaxdpo)
    for name in jaxdpo.__all__:
        assert getattr(jaxdpo, name).__doc__, name


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'jaxdpo' has no attribute 'trian'"):
        _ = jaxdpo.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_feedback_becomes_pairs_in_python(tmp_path):
    line = '{"messages": [{"role": "user", "content": "Hi"}], "output": "No.", "edited": "Hello!"}'
    (tmp_path / "edits.jsonl").write_text(line + "\n")
    config = jaxdpo.CollectConfig(
        source="expert_edits",
        data=str(tmp_path / "edits.jsonl"),
        out=str(tmp_path / "pairs.jsonl"),
    )
    assert len(jaxdpo.collect(config).pairs) == 1
    with open(config.out) as file:
        (made,) = map(json.loads, file)
    assert made["messages"][-1] == {"role": "assistant", "content": "Hello!"}
    assert made["rejected_message"] == {"role": "assistant", "content": "No."}


def test_ci_s_versions_are_within_the_bounds_and_name_all_that_it_installs():
    root = Path(__file__).parent.parent
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line.lower().split("==") for line in lines if not line.startswith("#")]
    pinned = {name.replace("_", "-"): version for name, version in pins}
    # The builds of one machine, such as torch's for CPUs, are no version of another's.
    assert not any("+" in version or "@" in name for name, version in pinned.items())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [*project["dependencies"], *extras["test"], *extras["lint"], *extras["docs"]]
    installed += [
        *extras["judge"],
        *extras["serve"],
        *extras["gguf"],
        *extras["gcs"],
        *extras["s3"],
    ]
    for requirement in map(Requirement, installed):
        marker = requirement.marker
        if requirement.name == "jaxdpo" or (
            marker is not None and not marker.evaluate({"python_version": "3.11"})
        ):
            continue
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), (requirement, version)
