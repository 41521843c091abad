"""What is suggested for a machine, by formula; its devices are the eight of these tests."""

import jax
import numpy as np

from jaxdpo.config import load_config
from jaxdpo.planning.chips import Chip, Target
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.planning.suggest import suggest
from tests.planned import MODEL, SETTINGS

LENGTHS = assumed_lengths(256, 20, 40, 128)
NONE = np.zeros((0, 3), np.int32)
CONFIG = load_config(None, [s for s in SETTINGS if "row" not in s] + ["batch.size=32"])


def suggested(memory_gib: float):
    chip = Chip("gpu", memory_gib, 100.0, 100.0, 100.0, (1,))
    return suggest(CONFIG, MODEL, LENGTHS, NONE, Target("eight", chip, jax.devices()))


def test_choices_fit_and_use_all_devices():
    choices = suggested(1.0)
    assert choices
    for choice in choices:
        mesh = choice.config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        assert choice.memory(MODEL) <= 0.85 * 2**30
    held = [choice.memory(MODEL) for choice in choices]
    assert held == sorted(held)


def test_with_little_memory_a_slower_way_is_found_and_with_none_no_way():
    much = suggested(1.0)[0]
    less = much.memory(MODEL) / 2**30 / 0.85 / 1.3
    other = suggested(less)[0]
    assert other.memory(MODEL) <= 0.85 * less * 2**30 < much.memory(MODEL)
    assert other.seconds[1] >= much.seconds[1]
    assert suggested(1e-5) == []
