"""The subcommands of `asysi cluster` and `kubectl asysi`."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from asysi.cli.groups import exit_codes
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import REPORT_FILE, Exit
from asysi_operator.plugin.access import ClusterError

if TYPE_CHECKING:
    from asysi_operator.plugin.kubectl import Kubectl


class Verb(TyperCommand):
    """Maps cluster errors to a message and exit code 1, user errors to exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; SIGTERM is handled like Ctrl-C, so that nothing is left behind."""
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            with exit_codes():
                return super().invoke(ctx)
        except (ClusterError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            raise typer.Exit(Exit.FAILED) from error
        finally:
            signal.signal(signal.SIGTERM, before)


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the experiment.")]
Context = Annotated[
    str | None, typer.Option("--context", metavar="CONTEXT", help="Context of the kubeconfig, as of kubectl.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAMESPACE", help="Namespace, as of kubectl.")
]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", metavar="FILE", help="The kubeconfig, as of kubectl.")
]
Image = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="IMAGE",
        help="Image of the short-lived pod, instead of the experiment's; it must hold Python.",
    ),
]
Timeout = Annotated[
    int,
    typer.Option(
        "--pod-seconds",
        metavar="SECONDS",
        min=60,
        max=86_400,
        help="Deadline of the short-lived pod; it is deleted as soon as it is done.",
    ),
]
POD_SECONDS = 3600


@app.callback()
def verbs() -> None:
    """Look at an experiment on a cluster, fill its inputs, fetch its results.

    Works through kubectl: its contexts, its kubeconfig, your permissions. `kubectl asysi` has the same verbs.

    \b
    After `kubectl apply -f scan.yaml`:
      asysi cluster why NAME        what holds it up, in a sentence
      asysi cluster logs NAME -f    what its containers say
      asysi cluster report NAME     its report, in the browser
      asysi cluster fetch NAME      all results, to runs/NAME

    Exit codes: 0 done, 1 the cluster refused or broke off, 2 a mistake in what was asked, 130 Ctrl-C.
    """


@app.command(cls=Verb)
def fetch(  # noqa: PLR0917 - each is an option of the command
    name: Name,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="WHAT",
            help="`report`, or a path within the results, like sae or archive; repeat it for several.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to make; default runs/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that folder.")] = False,
    image: Image = None,
    pod_seconds: Timeout = POD_SECONDS,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Copy an experiment's results to this machine.

    While the experiment's pod runs they come from its `finish` container, as far as they are written.
    Otherwise a short-lived pod mounts the claim, read-only, and is deleted however this ends. The folder is
    there whole or not at all.

    \b
    Examples:
      asysi cluster fetch minilm
      asysi cluster fetch minilm --only report -o .
      asysi cluster fetch minilm --only sae --only ledger.json -n team-a
    """
    from asysi_operator.plugin import reach, transfer  # noqa: PLC0415 - not needed for help

    paths = [str(REPORT_FILE) if one == "report" else transfer.result_path(one) for one in only or ()]
    target = output or Path("runs", name)
    alone, file = paths == [str(REPORT_FILE)], target / REPORT_FILE
    if not alone:
        transfer.refuse_existing(target, overwrite=overwrite)
    else:  # checked before a pod is created
        transfer.refuse_folder(file)
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists: choose another --output, or give --overwrite")
    kubectl = _kubectl(context, namespace, kubeconfig)
    with reach.results(kubectl, name, image=image, seconds=pod_seconds) as place:
        if alone:
            moved = transfer.fetch_file(kubectl, place, paths[0], file)
            typer.echo(f"{file} ({_size(moved.size)})")
            return
        moved = transfer.fetch(kubectl, place, paths, target, overwrite=overwrite)
    typer.echo(f"{target} ({moved.files} files, {_size(moved.size)})")


@app.command(cls=Verb)
def report(  # noqa: PLR0917 - each is an option of the command
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; default NAME-report.html."),
    ] = None,
    view: Annotated[bool, typer.Option("--open/--no-open", help="Whether to open it in the browser.")] = True,
    image: Image = None,
    pod_seconds: Timeout = POD_SECONDS,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Fetch an experiment's report and open it.

    It is one file that needs nothing else. Where there is no display, its path is printed and nothing is
    opened.

    \b
    Examples:
      asysi cluster report minilm
      asysi cluster report minilm -o minilm.html --no-open
    """
    from asysi_operator.plugin import reach, transfer  # noqa: PLC0415 - not needed for help

    target = output or Path(f"{name}-report.html")
    transfer.refuse_folder(target)
    kubectl = _kubectl(context, namespace, kubeconfig)
    with reach.results(kubectl, name, image=image, seconds=pod_seconds) as place:
        moved = transfer.fetch_file(kubectl, place, str(REPORT_FILE), target)
    typer.echo(f"{target} ({_size(moved.size)})")
    if view and _has_display():
        typer.launch(target.absolute().as_uri())


@app.command(cls=Verb)
def logs(  # noqa: PLR0917 - each is an option of the command
    name: Name,
    container: Annotated[
        str | None,
        typer.Option(
            "--container",
            "-c",
            metavar="CONTAINER",
            help="prepare, host, hook, sae, archiver, finish or pipeline; default all that have begun.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the pod ends.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Logs of the container before its last restart.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="LINES", min=0, help="The last lines.")
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what the containers of an experiment's newest pod say.

    \b
    Examples:
      asysi cluster logs minilm
      asysi cluster logs minilm -c sae -f
      asysi cluster logs minilm -c host --previous --tail 50
    """
    from asysi_operator.plugin.logs import show  # noqa: PLC0415 - not needed for help

    kubectl = _kubectl(context, namespace, kubeconfig)
    code = show(kubectl, name, container, follow=follow, previous=previous, tail=tail)
    raise typer.Exit(code)


@app.command(cls=Verb)
def why(
    name: Name,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE.tgz",
            help="Also collect the data for a bug report into this file; Secrets are never read.",
        ),
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say what holds an experiment up, and what to do.

    A bundle holds the experiment, its objects, pods and claims with their descriptions, events, logs, the
    operator's log and the versions. Passwords in URLs, tokens and the values of variables with telling names
    are removed; look through it before you hand it on all the same.

    \b
    Examples:
      asysi cluster why minilm
      asysi cluster why minilm --bundle minilm.tgz
    """
    from asysi_operator.plugin.diagnosis import explain  # noqa: PLC0415 - not needed for help
    from asysi_operator.plugin.observe import observe  # noqa: PLC0415

    if bundle is not None:
        from asysi_operator.plugin.transfer import refuse_folder  # noqa: PLC0415

        refuse_folder(bundle)
    kubectl = _kubectl(context, namespace, kubeconfig)
    seen = observe(kubectl, name)
    for sentence in explain(seen):
        typer.echo(sentence)
    for reason in seen.hidden.values():
        typer.echo(f"Not looked at: {reason}", err=True)
    if bundle is not None:
        from asysi_operator.plugin.bundle import write_bundle  # noqa: PLC0415

        for lack in write_bundle(kubectl, seen, bundle):
            typer.echo(f"not in the bundle: {lack}", err=True)
        typer.echo(f"{bundle} ({_size(bundle.stat().st_size)})")


@app.command(cls=Verb)
def put(  # noqa: PLR0917 - each is an option of the command
    target: Annotated[
        str,
        typer.Argument(metavar="NAME|CLAIM", help="A claim, or an experiment that reads exactly one claim."),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="LOCAL…", exists=True, help="Files and folders; each keeps its own name."),
    ],
    folder: Annotated[
        str,
        typer.Option(
            "--to", metavar="FOLDER", help="Folder on the claim, created if missing; default: its root."
        ),
    ] = ".",
    create: Annotated[
        str | None,
        typer.Option(
            "--create", metavar="SIZE", help="Make the claim, of this size (10Gi), if it is not there."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files with these names.")
    ] = False,
    image: Image = None,
    pod_seconds: Timeout = POD_SECONDS,
    context: Context = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Copy files of this machine to a claim that experiments read.

    A short-lived pod mounts the claim and is deleted however this ends. Each file or folder that is named is
    there whole or not at all: it is complete before it gets its name. An experiment then reads it as
    `/inputs/CLAIM/NAME`.

    \b
    Examples:
      asysi cluster put texts model/ topics.jsonl
      asysi cluster put texts topics.jsonl --create 10Gi
      asysi cluster put minilm topics.jsonl --to data --overwrite
    """
    from asysi_operator.plugin import reach, transfer  # noqa: PLC0415 - not needed for help
    from asysi_operator.plugin.files_pod import CONTAINER, FOLDER  # noqa: PLC0415

    inside = "." if folder == "." else transfer.result_path(folder, "--to")
    sources = transfer.distinct(files)
    kubectl = _kubectl(context, namespace, kubeconfig)
    if create is not None:
        reach.make_claim(kubectl, target, create)
    claim, experiment = reach.input_claim(kubectl, target)
    with reach.mounted(kubectl, claim, experiment, image=image, seconds=pod_seconds, read_only=False) as pod:
        place = transfer.ClaimFolder(pod, CONTAINER, f"{FOLDER}/{inside}")
        moved = transfer.put(kubectl, place, sources, overwrite=overwrite)
    typer.echo(f"{claim}: {moved.files} files, {_size(moved.size)}")


def main() -> None:
    """Run `kubectl asysi`."""
    app(prog_name="kubectl asysi")


def _kubectl(context: str | None, namespace: str | None, kubeconfig: str | None) -> "Kubectl":
    from asysi_operator.plugin.kubectl import Kubectl  # noqa: PLC0415 - not needed for help

    return Kubectl(context, namespace, kubeconfig)


def _size(size: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size //= 1024
    return f"{size:,} GiB"


def _has_display() -> bool:
    """Whether there is a display for a browser."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt
