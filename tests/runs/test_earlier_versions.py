"""Runs begun by an earlier version of the package continue, bit for bit, on this one.

`begun_at_c170dbf.tar.xz` holds three runs of a model of 3,640 parameters as the code of commit
c170dbf left them after three of six steps, and under `<run>_final.safetensors` the model that the
same code exported when it finished them: all parameters with two losses, weights and margins from
the data; adapters with dropout; a moving reference with a loss that sorts the pairs of a step.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdpo.config import load_config
from jaxdpo.devices.compilation_cache import _processor
from jaxdpo.runs.fit import fit
from jaxdpo.training.writers import read_metrics

BEGUN = Path(__file__).parent / "begun_at_c170dbf.tar.xz"


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    with tarfile.open(BEGUN) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    "run",
    [
        "adapters",
        pytest.param("all_parameters", marks=pytest.mark.slow),
        pytest.param("moving_reference", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_an_earlier_version_continues_to_the_same_bits(begun, run, capsys):
    overrides = [
        f"model.path={begun / 'model'}",
        f"data.path={begun / 'pairs.jsonl'}",
        f"data.cache_dir={begun / 'cache'}",
        f"training.folder={begun / run}",
    ]
    result = fit(load_config(begun / run / "config.yaml", overrides))
    assert "continuing after step 3" in capsys.readouterr().out
    steps = [each["step"] for each in read_metrics(begun / run) if each["split"] == "TRAIN"]
    assert steps == [1, 2, 3, 4, 5, 6]
    expected = load_file(begun / f"{run}_final.safetensors")
    found = load_file(result.folder / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    about = json.loads((begun / "about.json").read_text())
    same_arithmetic = about["jax"] == jax.__version__ and about["processor"] == _processor()
    for name, tensor in expected.items():
        if same_arithmetic:
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        else:
            # Another compiler or processor rounds sums in another order.
            np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)
