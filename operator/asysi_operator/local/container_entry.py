"""Entry point of a container's process: ties it to the runner, sets its CPU affinity, execs the command.

Run as a script, `container_entry.py RUNNER_PID CPUS COMMAND…`; uses only the standard library.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process with the command."""
    runner, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != runner:  # the runner died before the prctl call
        sys.exit(128 + signal.SIGKILL)
    if cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    # SIGINT would crash a worker that is still importing; the runner repeats it until it is handled.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execvp(command[0], command)  # noqa: S606 - becoming the rendered command is the purpose


if __name__ == "__main__":
    main()
