#!/bin/sh
# tini is PID 1: it forwards signals and reaps orphans. Python as PID 1 would lose a SIGTERM that arrives
# during imports, because the kernel ignores the default action of signals for PID 1.
set -eu
[ "$#" -gt 0 ] || set -- asysi --help
exec tini -- "$@"
