"""Plans for machines that are not there, by their compilers, each in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# `.ci/run` installs the compilers, and sets this: a test that cannot run fails there.
REQUIRED = os.environ.get("JAXDPO_TEST_PLANNERS") == "required"
needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None and not REQUIRED,
    reason="needs libtpu: pip install 'jaxdpo[tpu]'",
)
needs_cuda_compiler = pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None and not REQUIRED,
    reason="needs XLA's compiler for GPUs: pip install 'jaxdpo[plan-gpu]'",
)
LLAMA_8B = Path(__file__).parents[2] / "configs/shapes/llama-3.1-8b"


def run_planner(script: str) -> str:
    """Runs a script in a process of its own, which plans for other machines."""
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


KERNELS = """
import jax
import numpy as np
from jaxdpo.config import load_config
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.planning.aot import compile_step
from jaxdpo.planning.chips import keep_to_cpu, target
from jaxdpo.runs.execution import resolve
from jaxdpo.devices.sharding import make_mesh

keep_to_cpu()
other = target(TOPOLOGY)
settings = ["data.path=x", "training.folder=x", "mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]
config = load_config(None, ["model.path=x", "batch.size=8", ATTENTION, *settings])
model = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    num_layers=2,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, windows=(None, 100)),
    mlp=MLPConfig(intermediate_size=128),
)
mesh = make_mesh(config.mesh, other.devices)
lengths, none = np.full((8, 3), 300, np.int32), np.zeros((0, 3), np.int32)
with jax.set_mesh(mesh):
    resolved = resolve(config, model, lengths, none, mesh, other.machine)
    print(resolved.compute.attention, resolved.shape.row_length)
    print(compile_step(config, model, resolved, mesh, other.chip.platform).program.as_text())
"""


def kernels(topology: str, attention: str) -> str:
    values = f"TOPOLOGY, ATTENTION = {topology!r}, 'model.attention={attention}'"
    return run_planner(values + KERNELS)


@needs_libtpu
def test_a_step_for_tpus_attends_by_kernels_and_never_by_scores():
    first, _, text = kernels("v5e:2x2", "auto").partition("\n")
    attention, length = first.split()
    assert attention == "splash"
    for kernel in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{kernel}_segmented" in text
    for side in (length, "640"):
        assert f"{side},{side}]" not in text


REFERENCE = """
import jax
import numpy as np
from jaxdpo.config import load_config
from jaxdpo.runs.memory import abstract_run, device_bytes
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.planning.aot import compile_step
from jaxdpo.planning.chips import keep_to_cpu, target
from jaxdpo.runs.execution import resolve
from jaxdpo.devices.sharding import make_mesh

keep_to_cpu()
other = target("v5e:2x2")
settings = ["data.path=x", "training.folder=x", "mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]
settings += ["model.path=x", "batch.size=8", "model.remat=full", "reference.kind=frozen"]
model = ModelConfig(
    vocab_size=4096,
    hidden_size=512,
    num_layers=16,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=128),
    mlp=MLPConfig(intermediate_size=2048),
)
lengths, none = np.full((8, 3), 300, np.int32), np.zeros((0, 3), np.int32)
taken = []
for offload in ("false", "true"):
    config = load_config(None, [*settings, f"reference.offload={offload}"])
    mesh = make_mesh(config.mesh, other.devices)
    with jax.set_mesh(mesh):
        resolved = resolve(config, model, lengths, none, mesh, other.machine)
        taken.append(compile_step(config, model, resolved, mesh, "tpu").together)
        if offload == "false":
            held = device_bytes(abstract_run(config, model, mesh)[1])
print((taken[0] - taken[1]) / held)
"""


@needs_libtpu
def test_a_reference_in_the_hosts_memory_takes_none_of_a_tpus():
    # Of arguments and temporaries together: no copy takes its place.
    assert float(run_planner(REFERENCE)) > 0.95


@needs_cuda_compiler
def test_a_machine_without_a_known_memory_of_its_host_is_said_to_have_none():
    # Of GPUs that are not there JAX names no memories; of those that are, it does.
    arguments = [f"model.path={LLAMA_8B}", "pairs=64", "topology=h100:1"]
    arguments += ["reference.kind=frozen", "reference.offload=true"]
    script = f"""
import jaxdpo.plan as plan
from jaxdpo.errors import UserError
try:
    plan.main({arguments})
except UserError as error:
    print(error)
"""
    assert "reference.offload: to JAX a NVIDIA H100" in run_planner(script)


@needs_libtpu
def test_an_8b_with_adapters_fits_a_small_device_on_a_base_in_four_bits():
    arguments = [f"model.path={LLAMA_8B}", "pairs=64", "topology=v5e:1x1", "batch.size=4"]
    arguments += ["model.param_dtype=bfloat16", "lora.rank=16"]
    for base, verdict in (("full", "does not fit: a step needs"), ("nf4", "fits: a step holds")):
        given = [*arguments, f"lora.base={base}"]
        assert verdict in run_planner(f"import jaxdpo.plan as plan\nplan.main({given})")


@needs_libtpu
def test_what_does_not_fit_a_tpu_is_said_so():
    arguments = [f"model.path={LLAMA_8B}", "pairs=64", "topology=v5e:2x2", "mesh.fsdp=4"]
    script = f"import jaxdpo.plan as plan\nplan.main({[*arguments, 'mesh.data=1']})"
    shown = run_planner(script)
    assert "peak it would need" in shown
    assert "does not fit: a step needs" in shown and "and there are 15.75" in shown
    assert "no mesh, microbatch or remat was found that fits" in shown


@needs_cuda_compiler
def test_what_a_gpu_cannot_hold_is_said_so():
    # Its compiler accepts programs of any size: parameters and moments alone are 90 GiB here.
    arguments = [f"model.path={LLAMA_8B}", "pairs=64", "topology=h100:1"]
    shown = run_planner(f"import jaxdpo.plan as plan\nplan.main({arguments})")
    assert "does not fit: a step needs" in shown and "and there are 59.32" in shown


@needs_cuda_compiler
@pytest.mark.skipif(
    (find_spec("nvidia") is None or find_spec("nvidia.cudnn") is None) and not REQUIRED,
    reason="needs cuDNN: pip install --no-deps nvidia-cudnn-cu13",
)
def test_a_step_for_gpus_attends_by_cudnn_and_never_by_scores():
    first, _, text = kernels("h100:4", "cudnn").partition("\n")
    attention, length = first.split()
    assert attention == "cudnn"
    assert 'custom_call_target="__cudnn$fmhaSoftmax"' in text
    assert "__cudnn$fmhaSoftmaxBackward" in text
    for side in (length, "640"):
        assert f"{side},{side}]" not in text


@needs_cuda_compiler
def test_a_step_for_gpus_attends_by_the_pallas_kernel_and_never_by_scores():
    # Heads of 16 channels and a layer with a window, over two devices' rows and two devices' heads.
    first, _, text = kernels("h100:4", "pallas").partition("\n")
    attention, length = first.split()
    assert attention == "pallas"
    for kernel in ("forward", "dq", "dkv"):
        assert f"tile_attention_{kernel}" in text
    assert f"{length},{length}]" not in text
