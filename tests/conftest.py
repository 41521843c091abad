"""Settings every test runs under."""

import os
import signal
import tempfile
from pathlib import Path

# Eight CPU devices, so that sharding is tested everywhere; must be set before jax starts. Most of
# the suite's time goes into compiling programs that run once: without LLVM's optimisation it takes
# half as long. What XLA itself does is the same, and runs that tests start as processes have all.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Processes of the tests share what they compile, and the next session finds it again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jaxdpo-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest

# A shell lets its background jobs ignore these, and all processes that they start.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, handler)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def make_tokenizer():
    """`make_tokenizer(backend, template)` makes a tokenizer, from a module imported late."""
    from tests.make_tokenizers import make_tokenizer

    return make_tokenizer
