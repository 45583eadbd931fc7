"""Make the README's two pictures from one run of the demo: the live display and the report. `make pictures`.

Needs chromium on the PATH and the package pyte.
"""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "docs/assets"
OUTPUT = ROOT / "runs/pictures"
COLUMNS, LINES = 96, 27
SHOWN_AT = 75
"""Per cent of the run at which the live display is taken."""
COMMAND = ["asysi", "run", "examples/minilm/scan.yaml", "--kill-once", "sae"]
_COLORS = {"brown": "yellow", "brightblack": "bright_black", "brightbrown": "bright_yellow"}


def main() -> int:
    """Run the demo once and write both pictures."""
    if (chromium := shutil.which("chromium")) is None:
        sys.exit("chromium is needed: apt-get install chromium")
    subprocess.run([sys.executable, "examples/minilm/corpus.py"], cwd=ROOT, check=True)
    screen = watch([*COMMAND, "--output", str(OUTPUT), "--overwrite"])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "run.html"
        page.write_text(f"<body style='margin:0'>{drawn(screen)}</body>")
        shoot(chromium, page, ASSETS / "run.png", 1180, 680)
    shoot(chromium, OUTPUT / "report.html", ASSETS / "report.png", 1180, 1560)
    return 0


def watch(command: list[str]) -> list[Text]:
    """Run a command in a terminal and return what stood on it at `SHOWN_AT` per cent."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    taken: list[Text] = []
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.execvpe(command[0], command, os.environ | {"PATH": path, "TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    while True:
        try:
            stream.feed(os.read(terminal, 65536))
        except OSError:
            break
        share = re.search(r"(\d+)% [\d,]+ of [\d,]+ tokens", "\n".join(screen.display))
        if share and int(share[1]) >= SHOWN_AT and not taken:
            taken = [_line(screen, number) for number in range(LINES)]
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"{' '.join(command)} exited with {code}")
    return taken


def drawn(lines: list[Text]) -> str:
    """Return a terminal's content as SVG."""
    while lines and not lines[-1].plain.strip():
        lines.pop()
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {' '.join(COMMAND)}"), Text(), *lines, sep="\n")
        return console.export_svg(title="asysi run", theme=MONOKAI)


def _line(screen: pyte.Screen, number: int) -> Text:
    line = Text()
    for column in range(COLUMNS):
        cell = screen.buffer[number][column]
        color = f"#{cell.fg}" if re.fullmatch(r"[0-9a-f]{6}", cell.fg) else _COLORS.get(cell.fg, cell.fg)
        line.append(cell.data, f"{'bold ' if cell.bold else ''}{color}")
    line.rstrip()
    return line


def shoot(chromium: str, page: Path, picture: Path, width: int, height: int) -> None:
    """Take a picture of a page."""
    size, target = f"--window-size={width},{height}", f"--screenshot={picture}"
    command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", size, target, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
