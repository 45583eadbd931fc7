"""First moments of a container's process: dies with the runner, keeps to its processors, becomes the command.

Run as a script, `container_entry.py RUNNER_PID CPUS COMMAND…`, with nothing but the standard library.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the command."""
    runner, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != runner:  # it died before the line above
        sys.exit(128 + signal.SIGKILL)
    if cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    # A worker that is still importing would crash of SIGINT; the runner repeats it until somebody listens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execvp(command[0], command)  # noqa: S606 - becoming the rendered command is the purpose


if __name__ == "__main__":
    main()
