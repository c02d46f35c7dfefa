#!/usr/bin/env bash
# What a build must pass on a machine with a card. Nothing is compiled here: `make gpu-build` puts all of it in build/gpu.
#
#   scripts/gpu-check.sh                  every stage, each of less than 8 minutes
#   scripts/gpu-check.sh conformance ...  some of them
#
#   doctor       the machine and the card
#   kernels      the kernels' own programs (kernels/test), without timing
#   conformance  every op against the float64 oracle, with the card's own kernels and with those for sm_80; sentinels
#   sanitizer    compute-sanitizer's four tools (one alone: sanitizer-memcheck ...), each first on a bug planted for it
#   determinism  every op 1000 times under memory traffic, to the bit; two processes, to the bit
#   huge         cases of more than 2^31 elements: of no use on a card with less than 64 GB
#   model        a real model's logits, and its losses over 100 steps, held to the processor's
#   train        a small real model learns 8 answers to 8 of 8; again and resumed, to the bit
#   use          what train made: blends, switched in a conversation; a batch gone on with; merged; measured against its base
#   timings      every op of a 7B model's shapes by `qlora bench kernels`; the kernels' own programs again
#   memory       7B, 14B and 32B within budgets, a ballast taking the rest of the card: speed, bits, and memory as planned
#   long         7B in NF4 within 23 GiB on rows of 65,536 and 131,072 tokens
#   load         a 7B model read from the page cache (takes 16 GB of disk below TMPDIR)
#
#   OUT    where results go: results/<card>/<date>-<commit> otherwise
#   MODEL  the model of the stages model, train and use: .models/SmolLM2-135M-Instruct.Q4_1.gguf otherwise
#
# A stage writes <stage>.json and <stage>.log below OUT; the table of all of them comes last. Exit status 1: something failed.
set -uo pipefail
cd "$(dirname "$0")/.."

gpu=build/gpu
qlora=$gpu/qlora
tests=$gpu/cuda.test
model=${MODEL:-.models/SmolLM2-135M-Instruct.Q4_1.gguf}
limit=470 # seconds a stage may take
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ -x $qlora ] && [ -x $tests ] || { echo "$gpu lacks qlora or cuda.test: run make gpu-build, and bring build/gpu along" >&2; exit 2; }

card=$($qlora doctor --json | sed -n 's/.*"found": "\(NVIDIA[^,"]*\).*/\1/p' | head -1)
[ -n "$card" ] || { $qlora doctor >&2; echo "gpu-check: no card can be used here" >&2; exit 1; }
commit=$($qlora --version | sed 's/^qlora \([^,]*\),.*/\1/; s/[^A-Za-z0-9.-]/_/g')
out=${OUT:-results/$(tr -c 'A-Za-z0-9\n' - <<< "$card")/$(date -u +%Y%m%d)-$commit}
mkdir -p "$out"

# Results: a line a check, tab-separated: stage, check, ok or FAIL, seconds, detail.
table=$work/table
todo=()
: > "$table"
stage= log= deadline=0
left() { echo $((deadline > SECONDS ? deadline - SECONDS : 1)); }
bounded() { timeout --kill-after=10 "$(left)" "$@"; }

# note NAME RESULT SECONDS DETAIL
note() { printf '%s\t%s\t%s\t%s\t%s\n' "$stage" "$1" "$2" "$3" "${4:-}" | tee -a "$table"; }

# check NAME COMMAND...: ok when the command ends with status 0. Its output goes to the log, its last line to the table.
check() {
  local name=$1 begun=$SECONDS status detail
  shift
  "$@" > "$work/output" 2>&1
  status=$?
  { echo "== $name: $*"; cat "$work/output"; } >> "$log"
  detail=$(grep -v '^[[:space:]]*$' "$work/output" | tail -1 | tr '\t"\\' '   ' | cut -c1-120)
  case $status in
    0) note "$name" ok $((SECONDS - begun)) "$detail" ;;
    124 | 137) note "$name" FAIL $((SECONDS - begun)) "not done when the $limit s of the stage were over" ;;
    *) note "$name" FAIL $((SECONDS - begun)) "status $status: $detail" ;;
  esac
  return $status
}

# passed runs tests of cuda.test and demands that some ran: a pattern that matches nothing must not pass.
passed() {
  bounded $tests -test.v -test.timeout 0 "$@" > "$work/tests" 2>&1
  local status=$?
  grep -E '^ *--- FAIL|^panic|_test.go:|run [0-9]+, left' "$work/tests"
  local ran
  ran=$(grep -cE '^ *--- PASS: [^/]*/' "$work/tests")
  echo "$ran cases passed, $(grep -cE '^ *--- FAIL: [^/]*/' "$work/tests") failed"
  [ $status -eq 0 ] && [ "$ran" -gt 0 ] && return 0
  grep -m1 -oE '[a-z]+(_test)?\.go:[0-9]+: .*' "$work/tests"
  return $((status > 0 ? status : 1))
}

same() { cmp "$@" && echo "equal: $(sha256sum < "$1" | cut -c1-16)"; }

stage_doctor() { check doctor bounded $qlora doctor && $qlora doctor --json > "$out/machine.json"; }

# programs lists the kernels' own.
programs() { ls $gpu/*_test | grep -v planted_test; }

stage_kernels() {
  local program
  for program in $(programs); do check "$(basename "$program")" bounded "$program"; done
}

stage_conformance() {
  local v
  for v in auto sm_80; do
    check "ops, $v" passed -test.run '^TestCardConformance$' -variant $v
    check "decoder, $v" passed -test.run '^TestCardInvariants$' -variant $v
  done
}

# sanitized TOOL COMMAND...: status 99 where the tool finds something. Nothing it cannot see may pass for nothing found.
sanitized() {
  local tool=$1
  shift
  bounded "$sanitizer" --tool "$tool" --error-exitcode 99 --launch-timeout 120 "$@" > "$work/sanitized" 2>&1
  local status=$?
  grep -E '=========|--- FAIL|cases' "$work/sanitized" | tail -40
  grep -q '========= COMPUTE-SANITIZER' "$work/sanitized" || { echo "the sanitizer did not start"; return 1; }
  return $status
}

# caught TOOL: the tool finds the bug planted for it.
caught() {
  sanitized "$1" $gpu/planted_test "$1"
  local status=$?
  [ $status -eq 99 ] && echo "found, as it should" && return 0
  echo "status $status: the bug planted for $1 was not found, so this tool proves nothing here"
  return 1
}

wide='^TestCardConformance$/././(7B|1\.5B|0\.5B)' # what is left out: widths that take the tools hours

sanitize() {
  local tool=$1 v variants="auto sm_80"
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer "${CUDA_HOME:-/none}/bin/compute-sanitizer" 2> /dev/null | head -1)
  [ -n "$sanitizer" ] || { note "$tool" FAIL 0 "compute-sanitizer is not on the path, in CUDA_HOME or in /usr/local/cuda"; return 1; }
  check "$tool, planted" caught "$tool" || return 1
  # These two do not follow what TMA and wgmma do, so they hold for the kernels of sm_80 alone.
  case $tool in racecheck | initcheck) variants=sm_80 ;; esac
  for v in $variants; do
    check "$tool, $v" sanitized "$tool" $tests -test.run '^TestCardConformance$' -test.skip "$wide" -test.timeout 0 -variant "$v"
  done
}

stage_sanitizer-memcheck() { sanitize memcheck; }
stage_sanitizer-synccheck() { sanitize synccheck; }
stage_sanitizer-racecheck() { sanitize racecheck; }
stage_sanitizer-initcheck() { sanitize initcheck; }

stage_determinism() {
  check "1000 times" passed -test.run '^TestCardRepeats$' -repeats 1000 -digests "$work/first"
  check "another process" passed -test.run '^TestCardRepeats$' -repeats 1 -digests "$work/second"
  check "both processes" same "$work/first" "$work/second"
}

stage_huge() { check "past 2^31" passed -test.run '^TestCardHuge$'; }

stage_model() {
  [ -f "$model" ] || { note model FAIL 0 "there is no $model: bring it along, or name another in MODEL"; return 1; }
  check "logits" real '^TestCardModel$'
  check "100 steps" real '^TestCardSteps$' -losses "$out/losses.tsv"
}

# real runs a test of a real model, and says what it measured.
real() {
  bounded $tests -test.v -test.timeout 0 -test.run "$1" -model "$model" "${@:2}" > "$work/tests" 2>&1
  local status=$?
  grep -E '_test.go:|^panic|^---' "$work/tests"
  grep -q -- '--- PASS: TestCard' "$work/tests" || return $((status > 0 ? status : 1))
  grep -oE '[0-9]+ (tokens of|losses,) .*' "$work/tests"
}

# sft NAME FLAGS...: a run into $work/NAME; prints its last line.
sft() {
  local name=$1
  shift
  bounded $qlora sft --backend cuda --model "$model" --dataset builtin:self-cognition --output_dir "$work/$name" --add_version false \
    --lora_rank 16 --lora_alpha 32 --lora_dropout 0.05 --learning_rate 1e-3 --weight_decay 0 \
    --num_train_epochs 16 --gradient_accumulation_steps 2 --save_steps 32 --logging_steps 8 "$@"
}

# learnt DIR: the adapter answers all 8.
learnt() {
  bounded $qlora eval --backend cuda --adapters "$1" --dataset builtin:self-cognition --max_new_tokens 64 --json | tee "$out/identity.json" \
    | tr -d ' \n' | grep -q '"identity_accuracy":1[,}]' && echo "8 of 8"
}

# resumed: the run's first half again, gone on with from its own checkpoint.
resumed() {
  cp -r "$work/run" "$work/resumed" && rm -rf "$work/resumed/checkpoint-64" &&
    sft resumed --resume_from_checkpoint "$work/resumed/checkpoint-32"
}

stage_train() {
  [ -f "$model" ] || { note train FAIL 0 "there is no $model: bring it along, or name another in MODEL"; return 1; }
  check "64 steps" sft run || return 1
  cp "$work/run/logging.jsonl" "$out/train.jsonl"
  check "answers" learnt "$work/run/checkpoint-64"
  check "again" sft again && check "again, equal" same "$work/run/checkpoint-64/adapter_model.safetensors" "$work/again/checkpoint-64/adapter_model.safetensors"
  check "resumed" resumed && check "resumed, equal" same "$work/run/checkpoint-64/adapter_model.safetensors" "$work/resumed/checkpoint-64/adapter_model.safetensors"
}

# trained makes the adapter that stage train leaves, if it was not run.
trained() { [ -f "$work/run/checkpoint-64/adapter_config.json" ] || sft run; }

# answers NAME FLAGS...: the model's answers to the questions on standard input, in $work/NAME.
answers() {
  local name=$1
  shift
  bounded $qlora infer --backend cuda --model "$model" --temperature 0 --max_new_tokens 48 --stream false "$@" > "$work/$name"
}

questions='你是谁?\n/reset\n你能联网吗?\n/reset\nWhat is the capital of France?\n'

# blends: all of an adapter is it, however it is put together; none of it is the base, to the bit.
blends() {
  local a=$work/run/checkpoint-64
  printf "$questions" | answers base && printf "$questions" | answers alone --adapters "$a" || return 1
  printf "$questions" | answers among --adapters "x=$a" "y=$a" --adapter_weights 0 1 &&
    printf "$questions" | answers halves --adapters "x=$a" "y=$a" --adapter_weights 0.5 0.5 &&
    printf "$questions" | answers none --adapters "x=$a" "y=$a" --adapter_weights 0 0 || return 1
  cmp "$work/alone" "$work/among" && cmp "$work/alone" "$work/halves" && cmp "$work/base" "$work/none" || return 1
  cmp -s "$work/base" "$work/alone" && echo "the adapter changes no answer" && return 1
  echo "alone, among others, in halves: equal; weight 0: the base's"
}

# switched: one process that changes its adapters says what processes of their own say.
switched() {
  local a=$work/run/checkpoint-64
  { printf '/base\n'; printf "$questions"; printf '/reset\n/adapter x=1\n'; printf "$questions"; printf '/reset\n/adapter x=0.5 y=0.5\n'; printf "$questions"; printf '/reset\n/base\n'; printf "$questions"; } |
    answers switched --adapters "x=$a" "y=$a" --adapter_weights 1 0 2> "$work/switches" || { cat "$work/switches"; return 1; }
  cat "$work/base" "$work/alone" "$work/halves" "$work/base" | cmp - "$work/switched" && grep -o 'adapters: .*ms)' "$work/switches" | tr '\n' ' '
}

# continued: a batch of draws whose end was lost goes on to the same bytes.
continued() {
  local ask=(infer --backend cuda --model "$model" --adapters "$work/run/checkpoint-64" --val_dataset builtin:general --temperature 1 --top_k 20 --max_new_tokens 32)
  bounded $qlora "${ask[@]}" --result_path "$work/whole.jsonl" || return 1
  head -n 9 "$work/whole.jsonl" > "$work/part.jsonl" && head -c 40 "$work/whole.jsonl" >> "$work/part.jsonl"
  bounded $qlora "${ask[@]}" --result_path "$work/part.jsonl" --resume && same "$work/whole.jsonl" "$work/part.jsonl"
}

merged() {
  bounded $qlora export --model "$model" --adapters "$work/run/checkpoint-64" --merge_lora true --torch_dtype bfloat16 --output_dir "$work/merged" &&
    bounded $qlora eval --backend cuda --model "$work/merged" --dataset builtin:self-cognition --max_new_tokens 64 --json | tee "$out/merged.json" |
    tr -d ' \n' | grep -q '"identity_accuracy":1[,}]' && echo "8 of 8"
}

measured() {
  bounded $qlora eval --backend cuda --adapters "$work/run/checkpoint-64" --dataset builtin:self-cognition --general builtin:general --choices builtin:choices \
    --with_base --max_new_tokens 64 --json > "$out/eval.json" && tr -d ' \n' < "$out/eval.json" | grep -o '"kl":[0-9.e-]*' | tr '\n' ' '
}

stage_use() {
  [ -f "$model" ] || { note use FAIL 0 "there is no $model: bring it along, or name another in MODEL"; return 1; }
  check "an adapter" trained || return 1
  check "blends" blends && check "switched in a conversation" switched
  check "a batch gone on with" continued
  check "merged" merged
  check "measured against its base" measured
}

# ballast MIB: another process takes the card but so many MiB, until let_go.
ballast() {
  rm -f "$work/hold"
  mkfifo "$work/hold"
  $tests -test.run '^TestCardBallast$' -test.timeout 0 -leave $(($1 << 20)) < "$work/hold" > "$work/ballast" 2>&1 &
  held=$!
  exec 9> "$work/hold"
  until grep -q '^ballast: ' "$work/ballast"; do
    kill -0 $held 2> /dev/null || { cat "$work/ballast"; exec 9>&-; return 1; }
    sleep 0.1
  done
  grep '^ballast: ' "$work/ballast"
}
let_go() { exec 9>&-; wait $held; }

# number FILE KEY: a number of a JSON file.
number() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$1" | head -1; }

# fit NAME MIB TOKENS/S FLAGS...: trains random weights within a process of so many MiB (0: the whole card) that a ballast
# leaves, at no less than so many tokens/s. Its memory.json and log go to OUT/fits.
fit() {
  local name=$1 budget=$2 least=$3 status
  shift 3
  [ "$budget" -eq 0 ] || { ballast "$budget" && set -- "$@" --vram_budget "${budget}MiB"; } || return 1
  bounded $qlora sft --backend cuda --random_weights --gradient_accumulation_steps 1 --report_to none --logging_steps 1 \
    --save_strategy steps --save_steps 1000 --output_dir "$work/$name" --add_version false "$@" 9>&-
  status=$?
  [ "$budget" -eq 0 ] || let_go || status=1
  [ $status -eq 0 ] || return $status
  mkdir -p "$out/fits"
  cp "$work/$name/memory.json" "$out/fits/$name.json"
  cp "$work/$name/logging.jsonl" "$out/fits/$name.jsonl"
  awk -v rate="$(number "$out/fits/$name.json" tokens_per_second)" -v least="$least" -v block="$(number "$out/fits/$name.json" block_bytes)" \
    -v process="$(number "$out/fits/$name.json" process_measured_bytes)" -v budget="$budget" 'BEGIN {
      printf "%.0f tokens/s (at least %d), block %.2f GiB, process %.2f GiB of %.2f\n", rate, least, block / 2^30, process / 2^30, budget / 2^10
      exit !(rate >= least && (budget == 0 || process <= budget * 2^20)) }'
}
nf4() { fit "$1" "$2" "$3" --quant_method bnb --quant_bits 4 "${@:4}"; }

# adapters NAME NAME: both runs learnt the same.
adapters() { same "$(ls "$work/$1"/checkpoint-*/adapter_model.safetensors)" "$(ls "$work/$2"/checkpoint-*/adapter_model.safetensors)"; }

# refused: a run that fits nowhere is refused with status 6, and with what fits.
refused() {
  bounded $qlora sft --backend cuda --random_weights --model qwen2.5-7b --dataset random:2048x1 --vram_budget 6GiB --save_strategy no --output_dir "$work/refused"
  [ $? -eq 6 ] && echo "refused, as it should be"
}

seven="--model qwen2.5-7b --dataset random:2048x12"

# Budgets of an arena of 18, 12.1 and 6.2 GiB are 640 MiB larger: what the process may take beside it (model/plan, Context).
stage_memory() {
  check "memory on the card" passed -test.run '^TestCard(Memory|Ballast|Sizes|HostMemory|HostTable|NF4Weight|RandomWeights|Profile)$'
  check "as planned, bf16" fit planned-bf16 0 0 --model qwen2.5-7b --dataset random:2048x3 --check_memory
  check "as planned, NF4" nf4 planned-nf4 0 0 --model qwen2.5-7b --dataset random:2048x3 --check_memory
  check "7B bf16 2x2048" fit 7b-bf16-2x2048 0 0 --model qwen2.5-7b --dataset random:2048x24 --per_device_train_batch_size 2
  check "7B bf16 1x2048 in 23 GiB" fit 7b-bf16-1x2048 23552 0 $seven
  check "7B NF4 2x2048 in 18 GiB" nf4 7b-nf4-2x2048 19072 15700 --model qwen2.5-7b --dataset random:2048x24 --per_device_train_batch_size 2
  check "7B NF4 1x2048" nf4 7b-nf4-1x2048 0 0 $seven
  local budget
  for budget in 16384 13030 12288 8192 6988 6400; do
    check "7B NF4 1x2048 in $budget MiB" nf4 7b-nf4-1x2048-$budget $budget 0 $seven &&
      check "the same bits in $budget MiB" adapters 7b-nf4-1x2048 7b-nf4-1x2048-$budget
  done
  check "7B bf16 in 6 GiB" refused
  check "14B NF4 1x4096 in 23 GiB" nf4 14b-nf4-1x4096 23552 0 --model qwen2.5-14b --dataset random:4096x6
  check "32B NF4 1x2048 in 23 GiB" nf4 32b-nf4-1x2048 23552 2800 --model qwen2.5-32b --dataset random:2048x8
}

stage_long() {
  check "65,536 tokens in 23 GiB" nf4 7b-nf4-1x65536 23552 4500 --model qwen2.5-7b --dataset random:65536x3 --num_train_epochs 1 --max_length 65536 &&
    check "65,536 tokens" nf4 7b-nf4-1x65536-free 0 0 --model qwen2.5-7b --dataset random:65536x3 --num_train_epochs 1 --max_length 65536 &&
    check "65,536 tokens, the same bits" adapters 7b-nf4-1x65536 7b-nf4-1x65536-free
  check "131,072 tokens in 23 GiB" nf4 7b-nf4-1x131072 23552 0 --model qwen2.5-7b --dataset random:131072x2 --num_train_epochs 1 --max_length 131072
}

# loaded NAME FLAGS...: the first step of a 7B model from the page cache is done within 6 s, and read at 80 % of what cat gives.
loaded() {
  local name=$1 begun=$EPOCHREALTIME bytes
  shift
  cat "$work"/big/*.safetensors > /dev/null
  local cat=$EPOCHREALTIME
  bytes=$(cat "$work"/big/*.safetensors | wc -c)
  bounded $qlora sft --backend cuda --model "$work/big" --dataset random:2048x1 --gradient_accumulation_steps 1 --report_to none --save_strategy no \
    --output_dir "$work/$name" --add_version false "$@" || return
  mkdir -p "$out/fits"
  cp "$work/$name/memory.json" "$out/fits/$name.json"
  awk -v a="$begun" -v b="$cat" -v bytes="$bytes" -v first="$(number "$out/fits/$name.json" first_step_seconds)" -v rate="$(number "$out/fits/$name.json" load_gb_per_second)" 'BEGIN {
    own = bytes / (b - a) / 1e9
    printf "first step after %.2f s, loaded at %.2f GB/s, cat reads %.2f GB/s\n", first, rate, own
    exit !(first <= 6 && rate >= 0.8 * own) }'
}

stage_load() {
  check "write a model" bounded $gpu/bigmodel -o "$work/big" || return
  cat "$work"/big/*.safetensors > /dev/null # into the page cache
  check "7B bf16 from the page cache" loaded load-bf16
  check "7B NF4 from the page cache" loaded load-nf4 --quant_method bnb --quant_bits 4
}

timed() { bounded $qlora bench kernels --backend cuda --max_time 2s --results '' --out "$out/ops.json"; }

stage_timings() {
  check "ops" timed
  local program
  for program in $(programs); do check "$(basename "$program")" bounded "$program" "$out/$(basename "$program" _test).json"; done
}

# finish writes the stage's rows as JSON.
finish() {
  awk -F '\t' -v stage="$stage" -v card="$card" -v commit="$commit" '
    BEGIN { printf "{\"stage\": \"%s\", \"card\": \"%s\", \"commit\": \"%s\", \"checks\": [", stage, card, commit }
    $1 == stage { printf "%s\n  {\"check\": \"%s\", \"result\": \"%s\", \"seconds\": %d, \"detail\": \"%s\"}", n++ ? "," : "", $2, $3, $4, $5 }
    END { print "\n]}" }' "$table" > "$out/$stage.json"
}

for name in ${*:-doctor kernels conformance sanitizer determinism huge model train use timings memory long load}; do
  case $name in
    sanitizer) todo+=(sanitizer-memcheck sanitizer-synccheck sanitizer-racecheck sanitizer-initcheck) ;;
    *) declare -F "stage_$name" > /dev/null && todo+=("$name") || { echo "there is no stage $name" >&2; exit 2; } ;;
  esac
done
for stage in "${todo[@]}"; do
  deadline=$((SECONDS + limit))
  log=$out/$stage.log
  : > "$log"
  "stage_$stage"
  finish
done

{
  printf '| stage | check | | seconds | |\n|---|---|---|---|---|\n'
  awk -F '\t' '{ printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' "$table"
} > "$out/gpu-check.md"
printf '\n%s, %s\n' "$card" "$commit"
cat "$out/gpu-check.md"
grep -q . "$table" || { echo "nothing was checked" >&2; exit 1; }
! cut -f3 "$table" | grep -q FAIL
