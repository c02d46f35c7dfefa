#!/usr/bin/env bash
# Have other programs read what qlora export writes, and compare: transformers, PEFT, the gguf package, llama.cpp (as
# llama-cpp-python) and Ollama's own parsers.
#
#   scripts/clients/check.sh MODEL.gguf ADAPTER > results/clients/NAME.json
#
# Needs bin/qlora, a PYTHON with torch, transformers, peft, gguf and llama-cpp-python, and go for Ollama's packages. What
# is missing is said and counted as not run. Exit status 1: something differs.
set -euo pipefail
model=$1 adapter=$2
here=$(cd "$(dirname "$0")" && pwd)
qlora=${QLORA:-bin/qlora}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

{
  # Its own update twice, each half: a blend whose sum is known.
  both=(--model "$model" --adapters "one=$adapter" "two=$adapter" --adapter_weights 0.25 0.5)
  $qlora export --model "$model" --adapters "$adapter" --merge_lora true --torch_dtype float32 --max_shard_size 200MB --output_dir "$work/merged"
  $qlora export "${both[@]}" --merge_lora true --torch_dtype float32 --output_dir "$work/merged-blend"
  $qlora export "${both[@]}" --to_peft_format true --output_dir "$work/peft-blend"
  $qlora export --model "$model" --to_hf true --torch_dtype bfloat16 --output_dir "$work/base"
  $qlora export --model "$model" --adapters "$adapter" --to_gguf adapter --output_dir "$work/adapter"
  for quant in f32 f16 bf16 q8_0 q4_0; do
    $qlora export --model "$model" --adapters "$adapter" --to_gguf model --quant $quant --output_dir "$work/$quant"
  done
  $qlora export --model "$model" --adapters "$adapter" --to_ollama true --output_dir "$work/ollama"
  $qlora data --model "$work/merged" --dataset builtin:self-cognition --row 1 --json > "$work/row.json"
  $qlora eval --model "$model" --adapters "$adapter" --dataset builtin:self-cognition --max_new_tokens 48 --torch_dtype float32 --json --answers > "$work/answers.json"
} >&2

# Ollama's parsers, as a program of their module.
mkdir "$work/parsers"
sed 1d "$here/ollama.go" > "$work/parsers/main.go"
if (cd "$work/parsers" && go mod init parsers && go get github.com/ollama/ollama@v0.17.4 && go build -o parsers .) >&2; then
  (cd "$work/ollama" && "$work/parsers/parsers" Modelfile adapter.gguf "$work/q8_0/model-q8_0.gguf") > "$work/ollama.json"
fi
"$python" "$here/check.py" "$model" "$adapter" "$work"
