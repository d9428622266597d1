#!/usr/bin/env bash
# Before a call, on a machine that reaches a package index: fills .gpu/ with what a machine with a
# GPU may lack. Nothing of it is committed.
#
#   make gpu-check-bundle            # wheels, and extensions where a Python 3.12 is found
#   PYTHON312=/path/to/python3.12 make gpu-check-bundle
#
# .gpu/wheels: greenlet and PuLP 3 (with its solver) for Python 3.12.
# .gpu/built:  the extensions for Python 3.12, with the digest of their sources; without a CUDA
#              toolkit here they are built on the machine with the GPU instead.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .gpu/wheels
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  -d .gpu/wheels "greenlet>=3,<4" "pulp>=3,<4"
python=${PYTHON312:-$(command -v python3.12 || true)}
if [ -z "$python" ]; then
  echo "no python3.12: extensions will be built on the machine with the GPU" >&2
  exit 0
fi
# In a copy: a build in place would leave extensions of another Python beside this one's.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$work"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "setuptools>=77" wheel "pybind11>=2.13"
destination=$PWD/.gpu
(
  cd "$work"
  MEMO_BUILD_CUDA=1 venv/bin/python setup.py -q build_ext --inplace --parallel "$(nproc)"
  venv/bin/python -m benchmarks.gpu_check._build
)
rm -rf "$destination/built"
cp -r "$work/.gpu/built" "$destination/built"
du -sh "$destination"
