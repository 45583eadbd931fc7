"""`python -m asysi.bus.serve_queues FOLDER`: runs a queue server until it is stopped."""

import sys
from pathlib import Path

from asysi.bus.queue_server import serve

if __name__ == "__main__":
    serve(Path(sys.argv[1]))
