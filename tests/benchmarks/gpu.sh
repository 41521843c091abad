#!/bin/sh
# All that is to be shown on an NVIDIA GPU of the Hopper kind, from the root of the repository:
#   sh tests/benchmarks/gpu.sh > gpu.txt
# First that every attention is right there, then how fast the steps are.
set -eu
venv=${VENV:-.venv-gpu}
[ -d "$venv" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet -e '.[cuda,test]'
python="$venv/bin/python"
# JAX takes three quarters of the memory unless it is told otherwise.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

date -u +%Y-%m-%d
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$python" -c "import jax; print('jax', jax.__version__, jax.devices())"

"$python" -m pytest -n0 -rs tests/model/attention/test_cudnn.py tests/model/attention/test_tiles.py \
  tests/model/attention/test_dense.py

# All parameters of a 1B; adapters on an 8B.
one_gpu="mesh.fsdp=1 mesh.data=-1 batch.size=64"
# shellcheck disable=SC2086
"$python" -m tests.benchmarks.kernels config=configs/llama-1b.yaml $one_gpu batch.rows_per_device=4
# shellcheck disable=SC2086
"$python" -m tests.benchmarks.kernels config=configs/llama-70b-lora.yaml $one_gpu \
  model.path=configs/shapes/llama-3.1-8b batch.rows_per_device=2
# Beside TRL.
"$python" -m tests.benchmarks.step device=gpu tuning=full batch=32 layers=16 width=2048 \
  vocabulary=128256
"$python" -m tests.benchmarks.step device=gpu tuning=lora batch=32 layers=32 width=4096 \
  vocabulary=128256 workloads=chat
