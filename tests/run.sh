#!/usr/bin/env bash
# Run the tests: the short ones and, with ASYSI_TESTS=all, the long ones and those that need a cluster.
# The first argument is the Python to run them with. Exits with 1 if any phase fails.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
failed=0

spread=(-n logical --dist loadfile)
"$python" -m pytest "${spread[@]}" --maxprocesses 8 -m 'not e2e and not long' || failed=1
if [ "${ASYSI_TESTS:-}" != all ]; then
  echo "Not run: tests marked e2e or long. To run them: ASYSI_TESTS=all make test"
  exit $failed
fi

# Tests of the cluster spend most of their time waiting, and need their answers in time: the long tests, which
# compute, run beside them at the lowest priority. Their output follows at the end.
log=$(mktemp)
trap 'kill "$long" 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT TERM
nice -n 19 "$python" -m pytest "${spread[@]}" --maxprocesses 4 --durations 20 -m 'long and not e2e' >"$log" 2>&1 &
long=$!
"$python" -m pytest --durations 20 -m e2e || failed=1
wait "$long" || failed=1
cat "$log"
exit $failed
