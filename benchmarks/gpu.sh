#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine that has one, in one command and less than nine minutes:
#
#   OUT=runs/gpu benchmarks/gpu.sh
#
# Builds in place; then at once the tests marked cuda and compute-sanitizer's four tools; then, alone, the benchmarks of
# whole detectors and those of the operations; then a short training. Each stage has a time limit, so that one that hangs leaves the others their time; the exit
# status is 0 only if none failed. Nothing is downloaded. In OUT: summary.json, cuda.json and cuda-detectors.json (the
# benchmarks), logs, and more.tar.gz (the build's log, tables, plots, the trained run without checkpoints): few files,
# easy to fetch.
#
# Environment: OUT          folder of the results (needed)
#              LIBRA_DATA   folder that holds bccd/, the data set of the training; without it there is none
#              WHEELS       folder of Python wheels that are not installed there (tyro and what it needs, pycocotools)
#              PYTHON       default python3; it has to have torch for CUDA, torchvision, numpy, ninja, pybind11, pytest,
#                           hypothesis, rich, tqdm and matplotlib, or WHEELS the ones that it lacks
#              LIBRA_COMMIT what the sources are, where git is not there to tell
set -uo pipefail

fail() { echo "benchmarks/gpu.sh: $1" >&2; exit 2; }

[ -n "${OUT:-}" ] || fail "set OUT to a folder for the results"
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is not there; name a Python in PYTHON"
has_gpu=$("$python" -c 'import torch; print(torch.cuda.is_available())' 2>&1) || fail "needs torch: $has_gpu"
[ "${has_gpu##*$'\n'}" = True ] || fail "needs an NVIDIA GPU, and torch sees none"

mkdir -p "$OUT" || fail "OUT=$OUT cannot be made"
OUT=$(cd "$OUT" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$work/site" "$work/stages" "$work/more"
total=525 # seconds for everything

# Runs a stage: NAME LIMIT LOG COMMAND ... Its line of the summary goes to a file of its own: some run at once.
stage() {
  local name=$1 limit=$2 log=$3 started=$SECONDS status words result=failed
  shift 3
  local left=$((total - SECONDS))
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    note "$name" failed 0 "no time was left"
    return 1
  fi
  printf '=== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) result=passed words="" ;;
    124 | 137) words="stopped after $limit s" ;;
    *) words="exit status $status" ;;
  esac
  note "$name" "$result" $((SECONDS - started)) "$words"
  return $status
}

note() { # NAME RESULT SECONDS WORDS
  printf '{"stage": "%s", "result": "%s", "seconds": %d, "why": "%s"}\n' "$@" >"$work/stages/$1"
  printf '%4d s  %-24s %-8s %4d s  %s\n' "$SECONDS" "$1" "$2" "$3" "$4"
}

have() { "$python" -c "import $1" 2>/dev/null; }

# The stages that ran, in the order of this list, as OUT/summary.json; the exit status of the whole.
finish() {
  local name lines="" failed=0
  for name in packages build tests memcheck racecheck synccheck initcheck detectors benchmarks training; do
    [ -f "$work/stages/$name" ] || continue
    lines+="${lines:+,$'\n'}  $(cat "$work/stages/$name")"
    grep -q '"result": "failed"' "$work/stages/$name" && failed=1
  done
  printf '{"seconds": %d, "stages": [\n%s\n]}\n' "$SECONDS" "$lines" >"$OUT/summary.json"
  tar -czf "$OUT/more.tar.gz" -C "$work/more" .
  echo "$OUT/summary.json"
  exit $failed
}

if [ -n "${WHEELS:-}" ]; then
  stage packages 60 "$OUT/build.log" "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
    --target "$work/site" "$WHEELS"/*.whl
fi

missing=""
for module in torchvision numpy ninja pybind11 pytest hypothesis rich tqdm matplotlib; do
  have "$module" || missing+="${missing:+, }$module"
done
[ -z "$missing" ] || fail "needs $missing: install for $python, or put wheels into WHEELS"

export MAX_JOBS=${MAX_JOBS:-$(nproc)}
LIBRA_CUDA=1 stage build 200 "$OUT/build.log" "$python" setup.py build_ext --inplace || finish
"$python" -c 'import libra_ops; print(libra_ops.build_info())' >>"$OUT/build.log" 2>&1
mv "$OUT/build.log" "$work/more/"

tests=tests
if ! have tyro || ! have pycocotools; then
  tests=tests/libra_ops
  echo "tyro or pycocotools is not there (see WHEELS): of the tests, those of libra_ops alone are run"
fi
stage tests 170 "$OUT/tests.log" "$python" -m pytest -q -m cuda -p no:cacheprovider "$tests" &

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck synccheck initcheck; do
  if [ -z "$sanitizer" ]; then
    note "$tool" failed 0 "compute-sanitizer is not there"
    continue
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 170 "$work/$tool.log" \
    "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -m benchmarks.sanitize &
done
wait
cat "$work"/*check.log >"$OUT/sanitizer.log" 2>/dev/null

# Seconds after which no further case is begun: WHAT of the time that is left, less what the last case and the report
# take, and at most LIMIT.
budget() {
  local left=$((total - SECONDS - 30))
  left=$((left * $1 / 100))
  [ "$left" -le "$2" ] || left=$2
  [ "$left" -ge 0 ] || left=0
  echo "$left"
}

stage detectors 200 "$OUT/benchmarks.log" "$python" -m benchmarks --device cuda --output "$work/more/benchmarks" \
  --label detectors --quick --budget "$(budget 50 110)" detectors
stage benchmarks 200 "$OUT/benchmarks.log" "$python" -m benchmarks --device cuda --output "$work/more/benchmarks" \
  --budget "$(budget 100 120)" operations
cp "$work"/more/benchmarks/cuda*.json "$OUT/" 2>/dev/null

if [ -z "${LIBRA_DATA:-}" ]; then
  note training skipped 0 "LIBRA_DATA is not set"
else
  stage training 150 "$OUT/training.log" "$python" -m libra_det.cli train --recipe bccd --data "$LIBRA_DATA/bccd" \
    --epochs 2 --workers 4 --device cuda --output "$work/training"
  rm -rf "$work/training/checkpoints"
  mv "$work/training" "$work/more/" 2>/dev/null
fi
finish
