#!/bin/sh
# The demo: MiniLM reads the Python manual, six hook points are watched, the SAE worker is killed once on purpose.
# Run it as `make demo`, or with an environment that has asysi[demo] installed.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-runs/minilm}

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

step python examples/minilm/corpus.py
step asysi check examples/minilm/scan.yaml
step asysi run examples/minilm/scan.yaml --output "$out" --overwrite --kill-once sae
step asysi mscan verify "$out"
step asysi mscan info "$out"
printf '\nLook at %s/report.html\n' "$out"
