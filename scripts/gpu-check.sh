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
#   model        a real model's logits, and its losses over 100 steps, held to the processor's in float32
#   train        a small real model learns 8 answers to 8 of 8; again and resumed, to the bit
#   use          what train made: blends, switched in a conversation; a batch gone on with; merged; measured against its base
#   timings      every op of a 7B model's shapes; the kernels' own programs again, with their yardsticks
#
#   OUT    where results go: results/<card>/<date>-<commit> otherwise
#   MODEL  the model of the stages model and train: .models/SmolLM2-135M-Instruct.Q4_1.gguf otherwise
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

# steps NAME FLAGS...: 100 steps with the losses of all of them.
steps() {
  local name=$1
  shift
  bounded $qlora sft --model "$model" --dataset builtin:self-cognition --output_dir "$work/$name" --add_version false --save_strategy no \
    --lora_dropout 0.05 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --num_train_epochs 25 --logging_steps 1 "$@"
}

# near: losses of the card beside the processor's: none more than 0.01 away, 0.003 in the mean.
near() {
  local side
  for side in cuda cpu; do sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$work/steps-$side/logging.jsonl" > "$work/losses-$side"; done
  paste "$work/losses-cuda" "$work/losses-cpu" | tee "$out/losses.tsv" | awk '
    { d = $1 > $2 ? $1 - $2 : $2 - $1; sum += d; if (d > most) most = d; last = $2 }
    END { printf "%d losses, the last %s: %.5f apart at most, %.5f in the mean\n", NR, last, most, sum / NR
          exit !(NR == 100 && NF == 2 && most > 0 && most <= 0.01 && sum / NR <= 0.003) }'
}

stage_model() {
  [ -f "$model" ] || { note model FAIL 0 "there is no $model: bring it along, or name another in MODEL"; return 1; }
  check "logits" logits
  check "100 steps" steps steps-cuda --backend cuda && check "100 steps, float32" steps steps-cpu --backend cpu --torch_dtype float32 && check "losses" near
}

logits() {
  bounded $tests -test.v -test.timeout 0 -test.run '^TestCardModel$' -model "$model" > "$work/tests" 2>&1
  local status=$?
  grep -E '_test.go:|^panic|^---' "$work/tests"
  grep -q -- '--- PASS: TestCardModel' "$work/tests" || return $((status > 0 ? status : 1))
  grep -oE '[0-9]+ tokens of .*' "$work/tests"
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

timed() { bounded $tests -test.run '^$' -test.bench '^BenchmarkCard$' -test.benchtime 200ms -test.timeout 0 | tee "$out/ops.bench" | grep -E 'ns/op|FAIL|^ok|panic'; }

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

for name in ${*:-doctor kernels conformance sanitizer determinism huge model train use timings}; do
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
