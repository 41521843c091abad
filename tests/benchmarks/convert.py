"""Memory of conversions: `python -m tests.benchmarks.convert [GIB]`.

Makes a random Llama of that size (2 GiB in float32 if not said) with an adapter, and converts it
back and forth. Each conversion runs in a process of its own, which says by how much its largest
resident memory grew beyond what it was when all was imported. What was written is then compared
with the source (`--check`) in the same process.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdpo.hub.adapter_write import AdapterBase, save_adapter
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.write import save_pretrained
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.storage.lazy_array import Stored
from tests.folders import sentence, tokenizer

LAYER_BYTES = 4 * (4 * 2048**2 + 3 * 2048 * 5632)
LORA = LoraConfig(rank=16)
# Source, arguments.
CONVERSIONS = {
    "Hugging Face → Orbax": ("model", {"format": "orbax"}),
    "Orbax → Hugging Face": ("Hugging Face → Orbax", {}),
    "Hugging Face → bfloat16, 1 GB files": ("model", {"dtype": "bfloat16", "shard_gb": 1.0}),
    "adapter → merged": ("adapter", {}),
}


def random_arrays(abstract, scale: float):
    """A tree of arrays that are drawn when they are read."""

    def stored(leaf):
        rng = np.random.default_rng(0)

        def read(spans):
            sizes = [span.stop - span.start for span in spans]
            return rng.standard_normal(sizes, np.float32) * np.float32(scale)

        return Stored(leaf.shape, np.dtype(np.float32), read)

    return jax.tree.map(stored, abstract)


def make_model(folder: Path, gib: float) -> None:
    """Writes `model` and `adapter`."""
    rng = random.Random(0)
    words = tokenizer([sentence(rng, 12) for _ in range(200)])
    hf_config = {
        "model_type": "llama", "vocab_size": 16384, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": max(1, round((gib * 2**30 - 16384 * 2048 * 4) / LAYER_BYTES)),
        "num_attention_heads": 16, "tie_word_embeddings": True,
    }  # fmt: skip
    config = config_from_hf(hf_config)
    params = random_arrays(abstract_params(config, jnp.float32), 0.02)
    save_pretrained(folder / "model", config, params, words, hf_config)
    lora = jax.eval_shape(lambda: init_lora(config, LORA, jax.random.key(0)))
    base = str(folder / "model")
    save_adapter(
        folder / "adapter",
        random_arrays(lora, 0.02),
        LORA,
        AdapterBase(base, config, hf_config),
        words,
    )


def largest_resident() -> int:
    """Returns the peak memory of this process so far, in KiB, without its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(arguments: str) -> None:
    """Runs one conversion and prints what it took, as JSON."""
    jax.devices()
    before = largest_resident()
    start = time.perf_counter()
    convert(ConvertConfig.model_validate_json(arguments))
    seconds, after = time.perf_counter() - start, largest_resident()
    print(json.dumps({"before": before, "after": after, "seconds": seconds}))


def main(gib: float) -> None:
    """Makes the model, converts it, prints the table."""
    table = Table("conversion, with --check", "before, MiB", "extra, MiB", "seconds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, gib)
        size = (folder / "model" / "model.safetensors").stat().st_size / 2**20
        for title, (source, options) in CONVERSIONS.items():
            paths = {"source": str(folder / source), "target": str(folder / title)}
            command = [sys.executable, "-m", "tests.benchmarks.convert", "--measure"]
            ran = subprocess.run(
                [*command, json.dumps({**paths, **options})],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found = json.loads(ran.stdout.splitlines()[-1])
            extra = (found["after"] - found["before"]) / 1024
            table.add_row(
                title, f"{found['before'] / 1024:.0f}", f"{extra:.0f}", f"{found['seconds']:.0f}"
            )
    Console().print(f"model of {size:.0f} MiB", table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
