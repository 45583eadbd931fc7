#!/bin/sh
# Train: sh train.sh 1,2 | sh train.sh cpu | sh train.sh --gpus 0,1 --config cfg.yaml
exec "${PYTHON:-python3}" -m asysi.cli train run --project "$(dirname "$0")" "$@"
