"""`python -m asysi.cli` is `asysi`."""

from asysi.cli import main

main()
