#!/usr/bin/env bash
# All results of a card, by `qlora bench`: `make bench-card` on the machine with the card. Nothing is compiled here: `make
# gpu-build bench-slowed` puts all of it in build/gpu.
#
#   scripts/bench-card.sh             every stage, each of less than 8 minutes
#   scripts/bench-card.sh step ...    some of them
#
#   verify      the probes and the vendor's libraries, before anything is held to them
#   quick       a minute of everything
#   products    the products of a 7B model, beside cuBLAS, with weights in 16 bits and in NF4
#   attention   its attention, beside cuDNN
#   others      its other ops
#   sm_80       products, attention and head by the kernels of every card
#   step        7B: 1024 to 8192 tokens, 16 x 64, rank 64, dropout, a third of the tokens with labels
#   sizes       0.5B to 14B
#   decode      7B, 1 to 8 sequences
#   vram        planned and measured memory, 0.5B to 14B, 1024 to 8192 tokens
#   job         the article's job on random weights of 7B, from files to answers
#   sustained   7B for SUSTAINED (6m), with clock, power and heat
#   peers       other people's trainers beside ours, where PYTHON (python3) has torch
#   gate        a kernel really slowed is caught, the same program against itself is not, nor against its own results
#
#   OUT     where results go: results otherwise
#   QLORA   the program: build/gpu/qlora, or else bin/qlora
#
# The table of all comes last. Exit status 1: something failed.
set -uo pipefail
cd "$(dirname "$0")/.."

qlora=${QLORA:-$(ls build/gpu/qlora bin/qlora 2> /dev/null | head -1)}
out=${OUT:-results}
limit=470 # seconds a stage may take
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[ -x "$qlora" ] || { echo "there is no program: run make gpu-build, and bring build/gpu along" >&2; exit 2; }

stage= deadline=0
table=$scratch/table
: > "$table"

# check NAME STATUS COMMAND...: ok when the command ends with that status.
check() {
  local name=$1 want=$2 begun=$SECONDS status result=ok
  shift 2
  printf '\n== %s, %s: %s\n' "$stage" "$name" "$*"
  timeout --kill-after=10 $((deadline > SECONDS ? deadline - SECONDS : 1)) "$@"
  status=$?
  [ $status -eq "$want" ] || result="FAIL (status $status)"
  [ $status -eq 124 ] || [ $status -eq 137 ] && result="FAIL ($limit s were over)"
  printf '| %s | %s | %s | %s |\n' "$stage" "$name" $((SECONDS - begun)) "$result" >> "$table"
}

bench() { check "$1" 0 "$qlora" bench "${@:2}" --backend cuda --results "$out"; }

stage_verify() { check "probes, libraries" 0 build/gpu/cuda.test -test.v -test.run '^TestCard(Probes|Yardsticks)$'; }
stage_quick() { check quick 0 "$qlora" bench quick --backend cuda; }
stage_products() {
  bench products kernels --filter '^(Linear|LinearBack)/'
  bench nf4 kernels --method nf4 --cache hot
}
stage_attention() { bench attention kernels --filter '^(Attention|AttentionBack|DecodeAttention)/'; }
stage_others() { bench others kernels --filter '^(Embed|RMSNorm|RMSNormBack|SwiGLU|SwiGLUBack|LoRAGrad|HeadLoss|HeadLoss eval|Logits|KL|GradNorm|AdamW|QuantNF4)/'; }
stage_sm_80() { bench sm_80 kernels --variant sm_80 --filter '^(Linear|LinearBack|Attention|AttentionBack|HeadLoss)/' --cache hot --max_time 3s; }

stage_step() {
  local model="--model qwen2.5-7b --max_time 30s"
  bench "lengths" step $model --tokens 2048 1024 4096 8192
  bench "16 x 64" step $model --tokens 1024 --samples 16
  bench "rank 64" step $model --tokens 2048 --lora_rank 64
  bench "dropout" step $model --tokens 2048 --lora_dropout 0.05
  bench "labels" step $model --tokens 2048 --labels 0.3
  bench "sm_80" step $model --tokens 2048 --variant sm_80
}

stage_sizes() {
  local size
  for size in 0.5b 1.5b 3b 14b; do bench $size step --model qwen2.5-$size --tokens 2048 --max_time 20s; done
}

stage_decode() {
  bench adapter decode --model qwen2.5-7b
  bench base decode --model qwen2.5-7b --base --sequences 1 --prompt 2048 --new 128
}

stage_vram() { bench memory vram --measure; }

# model is a folder of random weights of 7B, made once.
model() {
  local dir=${MODEL:-/tmp/qlora-random-7b}
  [ -f "$dir/config.json" ] || check weights 0 "$qlora" bench weights --model qwen2.5-7b --tokenizer testdata/tokenizer/qwen2.5 -o "$dir"
}

stage_job() {
  model
  bench "first time" job --model "${MODEL:-/tmp/qlora-random-7b}"
  bench "again" job --model "${MODEL:-/tmp/qlora-random-7b}"
}

stage_sustained() { bench sustained step --model qwen2.5-7b --tokens 2048 --sustained "${SUSTAINED:-6m}"; }

stage_peers() {
  model
  bench peers peers --python "${PYTHON:-python3}" --weights "${MODEL:-/tmp/qlora-random-7b}" --budget $((deadline - SECONDS - 20))s
}

stage_gate() {
  local what='kernels --filter ^RMSNorm/7B --cache hot --roofs=false'
  check "slowed" 1 "$qlora" bench ab "$qlora" build/gpu/qlora-slowed --what "$what" --fail_if 'median>3%' --all
  check "the same" 0 "$qlora" bench ab "$qlora" "$qlora" --what "$what" --fail_if 'median>1%' --all
  check "results" 0 "$qlora" bench check --backend cuda --results "$out" --kinds kernels --filter '^RMSNorm/' --all
}

todo=()
for name in ${*:-verify quick products attention others sm_80 step sizes decode vram job sustained peers gate}; do
  declare -F "stage_$name" > /dev/null && todo+=("$name") || { echo "there is no stage $name" >&2; exit 2; }
done
for stage in "${todo[@]}"; do
  deadline=$((SECONDS + limit))
  "stage_$stage"
done

printf '\n| stage | | seconds | |\n|---|---|---|---|\n'
cat "$table"
! grep -q FAIL "$table"
