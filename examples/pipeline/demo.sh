#!/bin/sh
# A pipeline that asks a model, against a stub that this starts: no model, no network, no cost.
set -eu
cd "$(dirname "$0")"
mkdir -p .data
step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

step python texts.py
: > .data/port
python stub.py --port 8731 --log .data/charged.jsonl > .data/port &
stub=$!
trap 'kill $stub' EXIT
tries=0
until [ -s .data/port ]; do
  tries=$((tries + 1))
  if [ $tries -gt 100 ]; then echo "the stub does not listen on port 8731: is something else there?" >&2; exit 1; fi
  sleep 0.1
done
step asysi pipeline run titles.yaml --overwrite
step asysi pipeline status titles.yaml
printf '\n%s calls were charged; the first rows:\n' "$(wc -l < .data/charged.jsonl)"
head -n 3 .data/titles.jsonl
