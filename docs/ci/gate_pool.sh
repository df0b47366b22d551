#!/usr/bin/env bash
# Gates every recipe of a list on this server and says in one exit code what happened: the gravest of 4, 1, 3, 5, 0.
#
#   docs/ci/gate_pool.sh RESULTS_FOLDER RECIPE...
#
# One server, one gate at a time: a lock keeps a second call waiting, since two runs on one card measure each other.
# A gate that says UNSTEADY (5) is tried once more; anything else is believed at once.
# Environment: COGBENCH (default: cogbench), COGBENCH_LOCK (default: /tmp/cogbench-gate.lock), COGBENCH_RUNS (3),
# COGBENCH_LOCK_SECONDS (21600: give up after six hours).
set -uo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 RESULTS_FOLDER RECIPE..." >&2
  exit 2
fi
cogbench=${COGBENCH:-cogbench}
results=$1
shift
mkdir -p "$results" || exit 2

exec 9>"${COGBENCH_LOCK:-/tmp/cogbench-gate.lock}" || exit 2
if ! flock -w "${COGBENCH_LOCK_SECONDS:-21600}" 9; then
  echo "another gate holds the cards of this server" >&2
  exit 4
fi

gate() {
  local recipe=$1 name=$2 attempt=$3
  "$cogbench" gate "$recipe" --runs "${COGBENCH_RUNS:-3}" --out "$results/$name/runs-$attempt" \
    --junit "$results/$name.xml" 9>&- | tee "$results/$name.txt"
  return "${PIPESTATUS[0]}"
}

declare -A seen=()
for recipe in "$@"; do
  name=$(basename "$recipe" .yaml)
  gate "$recipe" "$name" 1
  code=$?
  if [ "$code" = 5 ]; then
    echo "$name: unsteady, once more" >&2
    gate "$recipe" "$name" 2
    code=$?
  fi
  echo "$name: exit code $code"
  seen[$code]=1
done

for code in 4 1 3 5; do
  if [ -n "${seen[$code]:-}" ]; then exit "$code"; fi
done
for code in "${!seen[@]}"; do
  # 2 (usage), 130 (interrupted) and whatever a shell adds: not a pass.
  if [ "$code" != 0 ]; then exit "$code"; fi
done
exit 0
