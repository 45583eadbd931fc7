"""A stand-in for a container's program: it takes part in the pod's life, and does nothing else.

`fake_container.py NAME PLAN`: the plan is JSON, a list with a dictionary for each life; the last one repeats.
Keys: `ready` seconds until /readyz says yes (a server runs only where there is a port), `hangs` seconds
after which /livez says no and SIGTERM is not heard, `seconds` of work until `code`, `writes` files of the
output, a list or a dictionary with the content of each, `says` last words, `early` True to count SIGINT as
the end, `deaf` True to ignore SIGTERM, `stays` True to outlive the stream, `environment` variables to note.
Without `seconds` a container works until the stream is over; the host's end makes it so.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

name, plan = sys.argv[1], json.loads(sys.argv[2])
journal = Path(os.environ["FAKE_JOURNAL"])
over = Path(os.environ["ASYSI_SHM"]) / "over"
wishes = {"term": False, "int": False}


def note(what: str) -> None:
    with journal.open("a") as file:
        file.write(f"{name} {what}\n")


life = journal.read_text().split("\n").count(f"{name} started") if journal.exists() else 0
step = plan[min(life, len(plan) - 1)]
begun = time.monotonic()
signal.signal(signal.SIGTERM, lambda *_: wishes.update(term=not step.get("deaf")))
signal.signal(signal.SIGINT, lambda *_: wishes.update(int=True))
note("started")


def age() -> float:
    return time.monotonic() - begun


def hung() -> bool:
    return age() > step.get("hangs", 1e9)


def answer(listener: socket.socket) -> None:
    """Answer as the endpoints would; http.server takes too long to import."""
    while True:
        client, _ = listener.accept()
        with client:
            path = client.recv(4096).split(b" ")[1].decode()
            good = not hung() if path == "/livez" else age() >= step.get("ready", 0)
            body = json.dumps(step.get("status", {})).encode() if path == "/status" else b""
            code = b"200 OK" if good else b"503 No"
            client.sendall(b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body))


if port := int(os.environ["ASYSI_PORT"]):
    listener = socket.create_server((os.environ["ASYSI_BIND"], port))
    threading.Thread(target=answer, args=[listener], daemon=True).start()
for key in step.get("environment", []):
    note(f"{key}={os.environ.get(key)}")
writes = step.get("writes", [])
for path in writes:
    target = Path(os.environ["ASYSI_OUTPUT"]) / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(writes[path] if isinstance(writes, dict) else {}))
if "says" in step:
    Path(os.environ["ASYSI_TERMINATION"]).write_text(step["says"])


def leave(code: int) -> None:
    if name == "host" and code == 0:
        over.touch()
    note(f"ended {code}")
    os._exit(code)


while True:
    if wishes["term"] and not hung():
        leave(143)
    if wishes["int"] and step.get("early"):
        note("interrupted")
        leave(0)
    if "seconds" in step and age() >= step["seconds"]:
        leave(step.get("code", 0))
    if "seconds" not in step and not step.get("stays") and name != "host" and over.exists():
        leave(step.get("code", 0))
    time.sleep(0.01)
