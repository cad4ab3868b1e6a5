#!/bin/sh
# Runs the tests of the kernels under each tool of compute-sanitizer, all at once, a process per core; ends with 1 if one
# reports anything. Minutes, most of them the host's.
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
tools="memcheck racecheck initcheck synccheck"
export GTEST_TOTAL_SHARDS=$((($(nproc) + 3) / 4))
shards=$(seq 0 $((GTEST_TOTAL_SHARDS - 1)))
for tool in $tools; do
  for shard in $shards; do
    { GTEST_SHARD_INDEX=$shard "$sanitizer" --tool "$tool" --error-exitcode 1 "$tests" --gtest_brief=1 \
      --gtest_filter="$filter" >"$logs/$tool.$shard" 2>&1 && touch "$logs/$tool.$shard.passed"; } &
  done
done
wait

status=0
for tool in $tools; do
  for shard in $shards; do
    log=$logs/$tool.$shard
    if [ -e "$log.passed" ] && grep -q 'PASSED.*[1-9]' "$log"; then
      echo "$tool, part $shard: $(grep -o "[1-9][0-9]* tests*" "$log" | tail -n 1) passed, nothing reported"
    else
      status=1
      echo "$tool, part $shard:"
      cat "$log"
    fi
  done
done
exit $status
