"""Transfers: what a person sees of them."""

import io

from asysi_operator.plugin.meter import Meter


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(monkeypatch):
    """Bytes are counted on a terminal, and the line is gone at the end; a file gets nothing."""
    monkeypatch.setattr("asysi_operator.plugin.meter.PAUSE", -1.0)
    for screen, says in ((Terminal(), "2.0 MiB"), (io.StringIO(), "")):
        meter = Meter(io.BytesIO(b"x" * 2**21), screen)
        assert len(meter.read(2**21)) == meter.bytes == 2**21
        meter.close()
        assert says in screen.getvalue()
        assert screen.getvalue().endswith("\x1b[K" if says else "")
