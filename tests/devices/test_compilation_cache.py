"""A second start compiles nothing again, and what was compiled is found by content."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from jaxdpo.devices.compilation_cache import keep_compiled

hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
keep_compiled(Path(sys.argv[1]))
for factor in map(float, sys.argv[2:]):
    print(float(jax.jit(lambda x: jnp.sum(x * factor))(jnp.arange(4.0))), len(hits))
"""


def start(folder: Path, *factors: float, environment: dict[str, str] | None = None) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, factors)]
    clean = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    done = subprocess.run(
        command, env=clean | (environment or {}), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_second_start_finds_what_was_compiled(tmp_path):
    assert start(tmp_path, 2) == ["12.0", "0"]
    # Another program is another entry.
    result, hits, another, later_hits = start(tmp_path, 2, 3)
    assert (result, another) == ("12.0", "18.0")
    assert int(later_hits) >= int(hits) >= 1


def test_what_jax_was_told_before_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    start(tmp_path / "ours", 2, environment={"JAX_COMPILATION_CACHE_DIR": str(elsewhere)})
    assert not (tmp_path / "ours").exists()
    assert any(elsewhere.iterdir())
