"""`python -m train PATH`: predict one file."""

import sys
from pathlib import Path

from asysi.train.commands import main_of

if __name__ == "__main__":
    sys.exit(main_of(Path(__file__).parents[1], sys.argv[1:]))
