#!/usr/bin/env bash
# Print what scripts/peft/check.py compares: the rows of a dataset as qlora tokenises and masks them, and qlora's own
# mean negative log-likelihood of their label tokens in float32.
#   scripts/peft/rows.sh MODEL ADAPTER DATASET
set -euo pipefail
model=$1 adapter=$2 dataset=$3
qlora=${QLORA:-bin/qlora}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
$qlora eval --model "$model" --adapters "$adapter" --dataset "$dataset" --backend cpu --torch_dtype float32 --max_new_tokens 1 --json > "$tmp/eval.json"
n=$($qlora data --model "$model" --adapters "$adapter" --dataset "$dataset" --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["report"]["rows"])')
for row in $(seq "$n"); do
  $qlora data --model "$model" --adapters "$adapter" --dataset "$dataset" --row "$row" --json > "$tmp/row-$row.json"
done
python3 - "$tmp" "$n" <<'PY'
import json, sys
folder, n = sys.argv[1], int(sys.argv[2])
result = json.load(open(f"{folder}/eval.json"))
rows = []
for i in range(1, n + 1):
    tokens = json.load(open(f"{folder}/row-{i}.json"))["tokens"]
    rows.append({"input_ids": [t["id"] for t in tokens], "labels": [t["id"] if t["label"] else -100 for t in tokens]})
json.dump({"nll": result["nll"], "label_tokens": result["label_tokens"], "rows": rows}, sys.stdout)
PY
