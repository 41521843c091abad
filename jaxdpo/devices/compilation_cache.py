"""Compiled programs are kept on disk, so that the next start does not compile them again."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import jax

# Old entries go first when there are more bytes than this: a few hundred steps of large models.
_MAX_BYTES = 4 * 2**30


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs under a folder, unless JAX was told where to already.

    JAX finds a program by its text, options, devices and version. On CPU the machine code depends
    on the processor's instructions too, so processors have folders of their own: a home folder may
    be shared by machines that differ.
    """
    configured: Any = jax.config  # Its options are attributes that pyright cannot see.
    if configured.jax_compilation_cache_dir is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / _processor()))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)


def _processor() -> str:
    """Returns `x86_64-` and a digest of the instructions that the processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    known = {line for line in lines if line.startswith(("flags", "Features"))} or set(lines[:1])
    digest = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
