"""What the store raises.

MetaECGError
    StoreError (RuntimeError)           the store can't be used as it is
        NotFoundError (LookupError)     fields: kind, name
        ConflictError                   it is there already, or has changed meanwhile
        TooManyError                    as many wait as may
        StoreUnavailableError           database away, disk full, locked too long: try again
"""

from metaecg.errors import MetaECGError

SHOWN_CHARACTERS = 80


class StoreError(MetaECGError, RuntimeError):
    """The store can't be used as it is: not migrated, damaged, made by a newer metaecg."""


class NotFoundError(StoreError, LookupError):
    """The organisation has no such thing; what another organisation has looks the same."""

    def __init__(self, kind: str, name: object) -> None:
        self.kind = kind
        self.name = name
        shown = repr(name)
        if len(shown) > SHOWN_CHARACTERS:
            shown = shown[:SHOWN_CHARACTERS] + "..."
        super().__init__(f"there is no {kind} {shown}. Check the name, or list what there is.")

    def __reduce__(self):
        return NotFoundError, (self.kind, self.name)


class ConflictError(StoreError):
    """What should be made is there already, or what should be changed has changed meanwhile."""


class TooManyError(StoreError):
    """As many wait already as the caller allows."""


class StoreUnavailableError(StoreError):
    """The database can't be reached, its disk is full or it is locked for too long.

    Nothing was written. The same call works again once the cause has gone; no restart is needed.

    Parameters
    ----------
    message
        For the log and for who runs the server.
    answer
        What the API says, where the message has a driver's words: they may tell where the database
        is. ``None``: the message.
    """

    def __init__(self, message: str, *, answer: str | None = None) -> None:
        self.answer = message if answer is None else answer
        super().__init__(message)
