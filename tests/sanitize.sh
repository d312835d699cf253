#!/usr/bin/env bash
# The fuzz, NumPy and foreign-memory tests on CPU kernels that were built with AddressSanitizer and
# UndefinedBehaviorSanitizer: a read or write out of bounds, or undefined behaviour, ends the run with an error. Needs
# g++ and the environment of the tests.
#   tests/sanitize.sh [arguments for pytest]      LIBRA_FUZZ_EXAMPLES: examples per test, 100 unless set
# It builds a copy, and leaves the installed package as it is. Around two minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export CXX=${CXX:-g++} LIBRA_FUZZ_EXAMPLES=${LIBRA_FUZZ_EXAMPLES:-100}
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 # Python leaks what it interns, by design
preload=
for library in libasan.so libubsan.so libstdc++.so; do # libstdc++: for the exceptions that cross it
  found=$($CXX -print-file-name=$library)
  test -f "$found" || { echo "sanitize.sh: $CXX has no $library; install it (on Debian, libgcc-dev) or set CXX=g++" >&2; exit 1; }
  preload+="$found "
done

mkdir "$work/source"
cp -r csrc libra_ops libra_det setup.py build_backend.py pyproject.toml README.md LICENSE "$work/source"
rm -f "$work"/source/libra_ops/_*.so
cp -r tests "$work/tests"
LIBRA_SANITIZE=1 python -m pip install -q --no-deps --target "$work/site" "$work/source"

sanitized() { LD_PRELOAD=$preload PYTHONPATH=$work/site python "$@"; }
cd "$work"

# First that the sanitizers see what they should: a run that cannot fail proves nothing.
must_end_with() { # WORDS, PROGRAM: it dies, and says so
  if sanitized -c "$2" >"$work/log" 2>&1 || ! grep -q "$1" "$work/log"; then
    cat "$work/log"
    echo "sanitize.sh: expected an end with: $1" >&2
    exit 1
  fi
}
# An array that claims a thousand rows where memory holds 128.
beyond='import numpy as np; rows = np.zeros((128, 4), np.float32)
claimed = np.lib.stride_tricks.as_strided(rows, (1000, 4))'
must_end_with "AddressSanitizer: heap" "$beyond
import libra_ops.numpy; libra_ops.numpy.box_iou(claimed, rows)"
must_end_with "AddressSanitizer: heap" "$beyond
import torch, libra_ops; libra_ops.box_iou(*map(torch.from_numpy, (claimed, rows)))"
must_end_with "runtime error: .*misaligned" "import numpy as np, libra_ops._numpy
boxes = np.zeros(17, np.uint8)[1:].view(np.float32).reshape(1, 1, 4)
libra_ops._numpy.box_iou(boxes, boxes, 0, 1)"
for library in "$work"/site/libra_ops/_*.so; do
  grep -q __ubsan_handle "$library" || { echo "sanitize.sh: $library was built without UBSan" >&2; exit 1; }
done

# -v and --capture=sys: a finding ends the process at once, and its report and the test's name are to be seen.
sanitized -m pytest -v --capture=sys -p no:cacheprovider tests/libra_ops/test_fuzz_*.py tests/libra_ops/test_numpy.py \
  tests/libra_ops/test_foreign_memory.py "$@"
