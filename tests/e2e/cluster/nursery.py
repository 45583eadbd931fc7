"""Forks operators from a process that has imported everything: a start takes milliseconds, not a second.

Reads a line a command: `start ARGUMENT…` answers with the new process's id, `reap ID` with its exit code.
"""

import os
import sys

import kopf  # noqa: F401
import kubernetes  # noqa: F401

from asysi_operator import cluster, controller, handlers, health, watching  # noqa: F401
from asysi_operator.__main__ import main

for line in sys.stdin:
    command, *arguments = line.split()
    if command == "reap":
        print(os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os._exit(main(arguments))
    print(pid, flush=True)
