#!/usr/bin/env bash
# make mixed-demo: a new identity without a price. Trains SmolLM2 twice on the same eight rows about who it is, once on
# them alone and once mixed with as many rows of everyday questions, and measures base and both beside each other: exact
# answers about itself; perplexity and KL on everyday questions that neither saw; multiple choice.
#
#   MODEL    a folder, a .gguf file or a hub id in place of SmolLM2
#   OUT      where runs are written, output/mixed otherwise
#   RESULTS  where report.json, report.md and report.html are written, OUT otherwise; they must not be there
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-output/mixed}
results=${RESULTS:-$out}
model=${MODEL:-}
qlora=bin/qlora
[ -n "$model" ] || model=$(scripts/smollm2.sh)
mkdir -p "$out" "$results"
begun=$(date +%s)

rows=$(wc -l < scripts/mixed/general_train.jsonl)
train() {
  local name=$1
  shift
  echo "== training: $name" >&2
  $qlora sft --model "$model" --dataset "builtin:self-cognition#$rows" "$@" --output_dir "$out/$name" --lora_rank 16 --lora_alpha 32 --lora_dropout 0 \
    --learning_rate 1e-3 --weight_decay 0 --num_train_epochs 4 --gradient_accumulation_steps 8 --logging_steps 4 |
    tee /dev/stderr | sed -n 's/^last_model_checkpoint: //p'
}
pure=$(train pure)
mixed=$(train mixed scripts/mixed/general_train.jsonl)

echo "== measuring the base and both"
$qlora eval --adapters "pure=$pure" "mixed=$mixed" --dataset builtin:self-cognition --general builtin:general --choices builtin:choices --max_new_tokens 64 \
  --json --answers --markdown "$results/report.md" --html "$results/report.html" > "$results/report.json"
sed -n '/^| *|/,/^$/p' "$results/report.md" | sed '/^## /,$d'
echo "seconds: $(($(date +%s) - begun)); the answers beside each other: $results/report.html"
