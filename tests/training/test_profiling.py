"""Traces of chosen steps: which steps are in them, also of a run that continues or is stopped."""

import gzip
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.training.profiling import traced

REQUIRED = ["model.path=m", "data.path=d.jsonl", "training.folder=r"]


def taken(first, last):
    compiled = jax.jit(lambda x: x @ x)
    for number in range(first, last):
        yield number + 1, None, {"loss": compiled(jnp.ones((8, 8))), "num_slots": 1}


def steps_in(folder):
    """The step numbers of the annotations in a trace."""
    (file,) = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    found = [each for each in events if each.get("name") == "optimizer step"]
    return sorted(int(each["args"]["step_num"]) for each in found)


def test_the_chosen_steps_are_traced_and_all_are_taken(tmp_path):
    done = [each[0] for each in traced(taken(0, 5), (2, 3), tmp_path / "whole", 0)]
    assert done == [1, 2, 3, 4, 5] and steps_in(tmp_path / "whole") == [2, 3]
    # Continued after step 2, and stopped after step 3: the steps that this process took.
    steps: Any = traced(taken(2, 5), (2, 5), tmp_path / "rest", 2)
    assert next(steps)[0] == 3
    steps.close()
    assert steps_in(tmp_path / "rest") == [3]
    assert [each[0] for each in traced(taken(3, 5), (2, 3), tmp_path / "none", 3)] == [4, 5]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("given", ["[3, 2]", "[0, 2]", "[2]"])
def test_no_span_of_steps_is_refused(given):
    with pytest.raises(UserError, match=r"training(.profile)?"):
        load_config(None, [*REQUIRED, f"training.profile={given}"])
