#!/usr/bin/env bash
# All that one GPU of the Hopper kind can show in ten minutes, best value first:
#   bash tests/benchmarks/gpu.sh          (in the root of the repository)
#   DRY=1 bash tests/benchmarks/gpu.sh    every stage on a CPU, with tiny sizes
# First that every attention is right there, then how fast steps are, that a killed run goes on with the
# same bits, and TRL beside it. A stage has a limit of its own and leaves what it printed in $OUT; one
# that fails or is cut off costs its own figures and no others. STAGES="versions attention" runs those.
#
# Where there is no package index, .whl/ holds what is missing (tests/benchmarks/gpu_wheels.sh).
set -u
OUT=${OUT:-gpu_out}
DRY=${DRY:-}
# Seconds of all stages together: what is left of them bounds each stage's own limit.
BUDGET=${BUDGET:-570}
STAGES=${STAGES:-versions attention step_1b_pallas step_1b_cudnn step_8b_lora step_1b_tiles resume trl}
mkdir -p "$OUT"
python=${PYTHON:-python3}
if [ -d .whl ] && [ -z "$DRY" ]; then
  wheels=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$wheels" .whl/*.whl || exit 1
  export PYTHONPATH="$wheels:$PWD"
else
  export PYTHONPATH="$PWD"
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# JAX takes three quarters of the memory unless it is told otherwise.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
JAX_COMPILATION_CACHE_DIR=$(mktemp -d)
JAXDPO_CACHE=$(mktemp -d)
export JAX_COMPILATION_CACHE_DIR JAXDPO_CACHE
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR" "$JAXDPO_CACHE" "${wheels:-}"' EXIT
[ -n "$DRY" ] && export JAX_PLATFORMS=cpu
failed=0

# stage NAME SECONDS COMMAND…: runs a command if it is wanted and time is left for it.
stage() {
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  case " $STAGES " in *" $name "*) ;; *) return ;; esac
  [ "$limit" -gt $((BUDGET - SECONDS)) ] && limit=$((BUDGET - SECONDS))
  if [ "$limit" -lt 15 ]; then
    echo "== $name: no time left" | tee "$OUT/$name.txt"
    failed=1
    return
  fi
  echo "== $name"
  timeout -k 5 "$limit" "$@" 2>&1 | tee "$OUT/$name.txt" | tail -"${TAIL:-25}"
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || failed=1
  echo "== $name ended with $code after $((SECONDS - began)) s" | tee -a "$OUT/$name.txt"
}

# plan NAME ARGUMENTS…: times real steps of random weights and tokens at chat lengths.
plan() {
  local name=$1
  shift
  stage "$name" 110 "$python" -m jaxdpo.plan "$@"
}

versions='import jax, flax, optax, orbax.checkpoint, grain, datasets, transformers, pydantic
print("jax", jax.__version__, "flax", flax.__version__, "transformers", transformers.__version__)
print(jax.devices(), jax.devices()[0].device_kind)'
stage versions 60 bash -c 'date -u +%F; nvidia-smi --query-gpu=name,memory.total,driver_version \
  --format=csv,noheader 2>/dev/null; "$0" -c "$1"' "$python" "$versions"

# What needs several devices skips itself. The dense mask, which is the measure, is fp32: without a word
# a GPU would round its factors to TF32.
JAX_DEFAULT_MATMUL_PRECISION=highest stage attention 130 "$python" -m pytest -o addopts= -q -rs \
  -p no:cacheprovider tests/model/attention/test_pallas.py tests/model/attention/test_cudnn.py \
  tests/model/attention/test_tiles.py tests/model/attention/test_dense.py tests/scoring/test_logprobs.py

if [ -n "$DRY" ]; then
  small="model.path=@quickstart/model pairs=32 batch.size=4 data.max_length=256"
  # shellcheck disable=SC2086
  {
    plan step_1b_pallas $small model.attention=tiles
    plan step_1b_cudnn $small model.attention=dense
    plan step_8b_lora $small lora.rank=4
    plan step_1b_tiles $small model.attention=tiles model.remat=dots
  }
  resume="steps=9"
  trl="layers=2 width=192 vocabulary=1024 batch=2 steps=3 tuning=lora"
else
  one="@configs/llama-1b.yaml pairs=1024 mesh.fsdp=1 mesh.data=-1 batch.size=64 batch.rows_per_device=4"
  lora="model.path=@configs/shapes/llama-3.1-8b model.param_dtype=bfloat16 lora.rank=16 pairs=1024"
  # shellcheck disable=SC2086
  {
    plan step_1b_pallas $one model.remat=dots model.attention=pallas
    plan step_1b_cudnn $one model.remat=dots model.attention=cudnn
    plan step_8b_lora $lora batch.size=32 batch.rows_per_device=2 model.attention=pallas
    plan step_1b_tiles $one model.remat=dots model.attention=tiles
  }
  resume="steps=30"
  trl="device=gpu layers=16 width=2048 vocabulary=128256 batch=16 steps=4 tuning=full"
fi

# shellcheck disable=SC2086
stage resume 100 "$python" -m tests.benchmarks.resume $resume
# shellcheck disable=SC2086
TAIL=5 stage trl 300 "$python" -m tests.benchmarks.step $trl workloads=chat rounds=1 output="$OUT/trl.json"

echo "== all after $SECONDS s; figures are in $OUT"
exit $failed
