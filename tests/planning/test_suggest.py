"""Suggestions for a machine, by formula; its devices are the eight of these tests."""

import jax
import numpy as np
import pytest

from jaxdpo.config import load_config
from jaxdpo.planning.aot import compile_step
from jaxdpo.planning.chips import Chip, Target
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.suggest import Choice, suggest
from tests.planned import MODEL, SETTINGS

LENGTHS = assumed_lengths(256, 20, 40, 128)
NONE = np.zeros((0, 3), np.int32)
CONFIG = load_config(None, [s for s in SETTINGS if "row" not in s] + ["batch.size=32"])


def suggested(memory_gib: float):
    chip = Chip("gpu", memory_gib, 100.0, 100.0, 100.0, (1,))
    return suggest(CONFIG, MODEL, LENGTHS, NONE, Target("eight", chip, jax.devices()))


def peak(choice: Choice) -> float:
    """Bytes that the compiler allocates on a device for a step run in this way."""
    with jax.set_mesh(choice.mesh):
        return compile_step(choice.config, MODEL, choice.resolved, choice.mesh, "cpu").peak


def test_choices_fit_and_use_all_devices():
    choices = suggested(1.0)
    assert choices
    peaks = [peak(choice) for choice in choices]
    for choice in choices:
        mesh = choice.config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
    # By what the compiler allocates: all fit, and the first holds least, or nearly so.
    assert max(peaks) <= 2**30
    assert peaks[0] <= 1.1 * min(peaks)


@pytest.mark.slow
def test_with_little_memory_a_slower_way_is_found_and_with_none_no_way():
    much = suggested(1.0)[0]
    less = peak(much) / 2**30 / 1.3
    other = suggested(less)[0]
    assert peak(other) <= less * 2**30 < peak(much)
    assert other.seconds[1] >= much.seconds[1]
    assert suggested(1e-5) == []
