#!/bin/sh
# Predict a table: sh test.sh input.csv output.csv 0 (the number of a GPU, or cpu)
exec "${PYTHON:-python3}" -m asysi.cli train test --project "$(dirname "$0")" "$@"
