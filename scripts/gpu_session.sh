#!/usr/bin/env bash
# One lease of a GPU, used in order: check, benchmark, train as far as the time allows, bring home what counts.
#
#   scripts/gpu_session.sh SECONDS STATE OUT [TASK ...]
#
# SECONDS  time budget of the whole call; trainings are stopped (and saved) when it is spent
# STATE    folder of the runs' checkpoints; the same folder again resumes them
# OUT      session.log, benchmark tables, and a record and weights a training are left here
# TASK     check, benchmark, or the preset of a training, each "eat-..." / "pct-..." or "eagan-..." / "sagan-...";
#          by default: check benchmark eat-modelnet40 eagan-cifar10 sagan-cifar10
#
# Environment: DATA (folder of the data sets, default data), BUNDLE (a packed folder to open into DATA first, default
# .bundle), PYTHON, EXTRA (flags added to every training: "--compile", or for a rehearsal "--device cpu"), GAN_EXTRA (to
# every GAN's, default "--cuda-graphs --precision bf16"; empty for a rehearsal), and for a rehearsal SIZES and STEPS (flags
# of the two benchmarks: "--channels 16 --sides 16 --original-side 16" and "--batch-size 2").
set -uo pipefail
cd "$(dirname "$0")/.."
budget=${1:?seconds}; state=${2:?folder of checkpoints}; out=${3:?output folder}; shift 3
tasks=("$@"); [ ${#tasks[@]} -gt 0 ] || tasks=(check benchmark eat-modelnet40 eagan-cifar10 sagan-cifar10)
data=${DATA:-data}; bundle=${BUNDLE:-.bundle}; extra=${EXTRA:-}; gan_extra=${GAN_EXTRA---cuda-graphs --precision bf16}; sizes=${SIZES:-}; steps=${STEPS:-}
python=${PYTHON:-python3}
started=$SECONDS; failed=0
mkdir -p "$state" "$out"
log="$out/session.log"
exec > >(tee -a "$log") 2>&1

left() { echo $((budget - (SECONDS - started))); }
say() { printf '[%4d s] %s\n' $((SECONDS - started)) "$*"; }

if [ -f "$bundle/bundle.py" ]; then
  "$python" "$bundle/bundle.py" open --bundle "$bundle" --data "$data" --site "$state/site-packages"
fi
export PYTHONPATH="$PWD:$state/site-packages${PYTHONPATH:+:$PYTHONPATH}"

check() { "$python" -m pytest -q tests/test_devices.py tests/test_functional.py; }

benchmark() {
  # shellcheck disable=SC2086  # SIZES and STEPS hold several flags
  "$python" scripts/benchmark_attention.py $sizes --json "$out/benchmark_attention.json" &&
    "$python" scripts/benchmark_training.py $steps --precision both --json "$out/benchmark_training.json" &&
    "$python" scripts/benchmark_training.py $steps --precision both --compile \
      --json "$out/benchmark_training_compiled.json"
}

# The run saves itself on SIGINT and exits with status 2; 20 seconds remain for saving and copying.
train() {
  local preset=$1 script source seconds flags=$extra
  case "$preset" in
    *modelnet* | eat-* | pct-*) script=train_pointcloud.py; source=$data ;;
    *) script=train_gan.py; source=$data/cifar10-train.zip; flags="$flags $gan_extra" ;;
  esac
  seconds=$(($(left) - 20))
  [ "$seconds" -gt 10 ] || { say "$preset: no time left"; return 0; }
  # shellcheck disable=SC2086  # several flags
  timeout -s INT -k 30 "$seconds" "$python" "scripts/$script" "$preset" --data "$source" --out "$state/$preset" $flags \
    2> "$state/$preset.log"
  local status=$?
  tr '\r' '\n' < "$state/$preset.log" | tail -n 5
  cp "$state/$preset/weights.safetensors" "$out/$preset.safetensors" 2> /dev/null
  # A finished run's record holds its curves; until then the metrics do.
  cp "$state/$preset/record.json" "$out/$preset.json" 2> /dev/null ||
    cp "$state/$preset/metrics.jsonl" "$out/$preset.metrics.jsonl" 2> /dev/null
  [ "$status" -eq 124 ] || return "$status"  # 124: the time was spent, the run is saved
}

for task in "${tasks[@]}"; do
  say "$task"
  case "$task" in
    check | benchmark) "$task" ;;
    *) train "$task" ;;
  esac || { say "$task failed with status $?"; failed=1; }
done
say "done; $(find "$out" -type f | wc -l) files in $out"
exit $failed
