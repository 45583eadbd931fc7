"""The native ring: packets in shared memory, from one producer to named readers."""

from typing import Any, NoReturn

__all__ = [
    "HEADER_BYTES",
    "MAILBOX_WORDS",
    "MAX_PINS",
    "MAX_READERS",
    "MAX_REASONS",
    "PACKET_VERSION",
    "BusyError",
    "Claim",
    "ClosedError",
    "Control",
    "DeviceError",
    "EndianError",
    "FullError",
    "GeometryError",
    "Lane",
    "NativeMissingError",
    "Packets",
    "Reader",
    "RevokedError",
    "RingError",
    "SpaceError",
    "TruncatedError",
    "VersionError",
    "View",
    "Writer",
    "control_layout",
    "create",
    "header_layout",
    "payload_at",
    "required_bytes",
    "reset",
    "testpoints",
]


class NativeMissingError(ImportError):
    """The package was installed without its native part, or that part cannot be loaded here."""


try:
    from asysi_ring._core import (
        HEADER_BYTES,
        MAILBOX_WORDS,
        MAX_PINS,
        MAX_READERS,
        MAX_REASONS,
        PACKET_VERSION,
        BusyError,
        Claim,
        ClosedError,
        Control,
        DeviceError,
        EndianError,
        FullError,
        GeometryError,
        Lane,
        Packets,
        Reader,
        RevokedError,
        RingError,
        SpaceError,
        TruncatedError,
        VersionError,
        View,
        Writer,
        control_layout,
        create,
        header_layout,
        payload_at,
        required_bytes,
        reset,
        testpoints,
    )
except ImportError as _error:
    _why = str(_error)

    class _Missing:
        """Stands where a native name would: says so when used."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, *_: object, **__: object) -> NoReturn:
            raise NativeMissingError(
                f"asysi_ring.{self.name} needs the native ring, which is not installed ({_why}): "
                "install the package again where there is a C++20 compiler, without ASYSI_NATIVE=0"
            )

        def __getattr__(self, attribute: str) -> NoReturn:
            self()

    def _stand_in(name: str) -> Any:
        return type(name, (Exception,), {}) if name.endswith("Error") else _Missing(name)

    globals().update({name: _stand_in(name) for name in __all__ if name not in globals()})
