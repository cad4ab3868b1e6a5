#!/bin/sh
# Runs the tests of the kernels under each tool of compute-sanitizer, all at once; ends with 1 if one reports anything.
#
#   tests/cuda/sanitize.sh [PATH OF aliquot_cuda_tests]
#
# COMPUTE_SANITIZER says where it is, if not on the path. CUDA brings it, and so does pip's nvidia-cuda-sanitizer-api.
set -eu

tests=${1:-build/release/tests/aliquot_cuda_tests}
sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
if ! command -v "$sanitizer" >/dev/null; then
  echo "$0: there is no $sanitizer; install it, or say in COMPUTE_SANITIZER where it is" >&2
  exit 1
fi

filter=
for kernel in Cast FillNan FinishReport Pack PullAndReduce Statistics Reduce Scale SplitMaster Update; do
  filter="$filter*Cuda$kernel*:"
done
# Less what only repeats others at sizes that take minutes here.
filter="$filter-*ReduceLarge*:*CudaStatisticsAgain*:*CudaStatistics.*/7:*CudaScale.*/7:*CudaScale.*/15"
filter="$filter:*IsLongerThanTheGrid*:*IsLargerThanTheDeviceAtOnce*"

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for tool in memcheck racecheck initcheck synccheck; do
  { "$sanitizer" --tool "$tool" --error-exitcode 1 "$tests" --gtest_brief=1 --gtest_filter="$filter" \
    >"$logs/$tool" 2>&1 && touch "$logs/$tool.passed"; } &
done
wait

status=0
for tool in memcheck racecheck initcheck synccheck; do
  if [ -e "$logs/$tool.passed" ] && grep -q 'PASSED.*[1-9]' "$logs/$tool"; then
    echo "$tool: $(grep -o 'PASSED.*' "$logs/$tool"), nothing reported"
  else
    status=1
    echo "$tool:"
    cat "$logs/$tool"
  fi
done
exit $status
