#!/usr/bin/env bash
# Brings the wheels that tests/benchmarks/gpu.sh needs on a machine with JAX and PyTorch but without a
# package index into .whl/, which git does not see: about 10 MB, for Python 3.12. Run it in the root of
# the repository, where there is an index, and take .whl/ along.
set -euo pipefail
grep -qx '/.whl/' .git/info/exclude 2>/dev/null || echo '/.whl/' >> "$(git rev-parse --git-path info/exclude)"
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
  platforms+=(--platform "$platform")
done
# Without what they require: the machine has JAX, Flax, Optax, Orbax, PyTorch, Transformers and PEFT.
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d .whl \
  pydantic==2.14.4 pydantic-core==2.50.5 annotated-types typing-inspection 'grain>=0.2.18,<0.3' array-record \
  portpicker 'datasets>=4.0' dill multiprocess jsonschema jsonschema-specifications referencing rpds-py \
  tensorboardX trl==1.16.0 'rapidfuzz>=3.9' 'py3langid>=0.4' 'rensa>=0.5,<0.6' 'regex>=2024.5' "$@"
du -sh .whl
