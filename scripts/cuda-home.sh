#!/bin/sh
# Prints the root of the CUDA toolkit to build with: a system one of at least 12.8 (CUDA_HOME, or nvcc on the path),
# else the pinned wheels that `make toolchain` puts under $1 (which may not be there yet).
set -eu
new_enough() { "$1" --version 2>/dev/null | awk '/release/ { split($5, v, /[.,]/); ok = v[1] > 12 || (v[1] == 12 && v[2] >= 8) } END { exit !ok }'; }
for nvcc in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)"; do
  if [ -n "$nvcc" ] && new_enough "$nvcc"; then
    root=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
    # cuobjdump is asked for because the gate needs it.
    if [ -x "$root/bin/cuobjdump" ]; then echo "$root"; exit 0; fi
  fi
done
echo "$1/nvidia/cu13"
