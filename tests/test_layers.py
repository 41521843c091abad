"""Imports that are allowed, and those that must not happen."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(finished.stdout.split())


def test_reading_data_and_configuration_loads_no_jax():
    loaded = modules_after(
        "import jaxdpo; jaxdpo.read_pairs; from jaxdpo.data.config import DataConfig"
    )
    assert not {"jax", "torch", "transformers", "datasets", "flax"} & loaded


def test_training_loads_no_torch():
    assert "torch" not in modules_after("import jaxdpo; jaxdpo.fit")
