"""All calls of the kubectl binary, with the user's kubeconfig, context and namespace."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from asysi_operator.manifests.kinds import Manifest
from asysi_operator.plugin.access import ClusterError, refused

_SECONDS = 60
"""Timeout in seconds of a read request."""


def _find() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise ClusterError(
            "there is no kubectl on the PATH, and this command requires it: see "
            "https://kubernetes.io/docs/tasks/tools/"
        )
    return found


@dataclass(frozen=True)
class Kubectl:
    """kubectl with options that select the cluster and namespace."""

    context: str | None = None
    namespace: str | None = None
    kubeconfig: str | None = None
    program: str = field(default_factory=_find)

    def command(self, *arguments: str) -> list[str]:
        """Return the full command line."""
        options = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        given = [f"{name}={value}" for name, value in options.items() if value]
        return [self.program, *given, *arguments]

    def run(self, *arguments: str, content: str | None = None, seconds: float = _SECONDS) -> str:
        """Call kubectl and return its standard output.

        Args:
            arguments: verb and options.
            content: its standard input.
            seconds: timeout.

        Raises:
            ClusterError: it failed.
        """
        try:
            done = subprocess.run(  # noqa: S603 - kubectl, as the user has it
                self.command(*arguments),
                input=content,
                stdin=None if content is not None else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl {arguments[0]} did not respond within {seconds:.0f} s") from None
        if done.returncode != 0:
            raise refused(done.stderr or done.stdout, arguments)
        return done.stdout

    def get(self, *what: str) -> Manifest:
        """Return an object, or a list of them.

        Raises:
            ClusterError: it does not exist, access is forbidden, or the API server does not respond.
        """
        return _parsed(self.run("get", *what, "--output=json"))

    def find(self, *what: str) -> Manifest | None:
        """Return an object, or None if it does not exist."""
        said = self.run("get", *what, "--output=json", "--ignore-not-found")
        return _parsed(said) if said.strip() else None

    def items(self, kind: str, *options: str) -> list[Manifest]:
        """Return the objects of a kind."""
        return list(self.get(kind, *options).get("items") or ())

    def current_namespace(self) -> str:
        """Return the namespace of requests: from the option, the context, or `default`."""
        if self.namespace:
            return self.namespace
        said = self.run("config", "view", "--minify", "--output=jsonpath={..namespace}")
        return said.strip() or "default"

    @contextmanager
    def stream(self, *arguments: str, content: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
        """Call kubectl with its standard output, and optionally its input, as pipes; kill it on exit.

        The caller reads or writes, then calls `finish`.
        """
        process = subprocess.Popen(  # noqa: S603 - kubectl, as the user has it
            self.command(*arguments),
            stdin=subprocess.PIPE if content else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                _close(pipe)

    def remove(self, kind: str, name: str) -> bool:
        """Delete an object without waiting, ignoring further Ctrl-C; return whether it succeeded."""
        command = self.command("delete", kind, name, "--ignore-not-found", "--wait=false", "--grace-period=1")
        with _undisturbed():
            try:
                done = subprocess.run(  # noqa: S603 - kubectl, as the user has it
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    timeout=_SECONDS,
                    start_new_session=True,  # the terminal sends Ctrl-C to the whole process group
                )
            except subprocess.TimeoutExpired:
                return False
        return done.returncode == 0


def _parsed(said: str) -> Manifest:
    """Return the object that kubectl has printed; raises ClusterError where it printed something else."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ClusterError(f"kubectl get answered with something that is not JSON: {said.strip()[:200]}")
    return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM during an operation that must not be interrupted."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(process: "subprocess.Popen[bytes]", arguments: Sequence[str]) -> str:
    """Wait for a streaming call to succeed and return its standard error.

    Raises:
        ClusterError: it failed.
    """
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    if process.wait() != 0:
        raise refused(said, arguments)
    return said


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:  # the other end is closed: buffered data cannot be delivered
            return
