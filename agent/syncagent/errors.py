"""Every error syncagent raises on purpose: what happened, where, and what to do.

    SyncagentError
    ├── UsageError            the command or the configuration asks for something impossible
    ├── RefusedError          the request was understood and may not be done
    ├── DatabaseError         the site's PostgreSQL
    │   ├── Unreachable       no connection, or it went away
    │   ├── LacksPrivilege    a grant is missing
    │   ├── Contended         a lock was not to be had in time: roll back, try again
    │   ├── ConstraintBroken  rows that break a constraint of the table
    │   ├── Inexact           plain rows met metadata: ask for the batch in exact form
    │   ├── DiskFull          no space left where PostgreSQL writes
    │   └── CopyDiffers       a copied range is not what the donor has read
    ├── ProtocolError         a peer sent what the protocol does not allow
    │   └── DamagedFrame      bytes that do not match their digest, or stop too early
    ├── Undecided             the cluster cannot agree on it now: try again
    ├── TrustError            a certificate that is not listed, or not the one expected
    ├── LinkDown              a peer cannot be reached, or its link has ended
    ├── SpoolFull             no room for a batch on its way
    └── HomeFailed            the site's home cannot be read or written

Invariant: a message never holds a password or a key; `hint` is a thing the reader can do.
"""


class SyncagentError(Exception):
    """Base of all. `recoverable` says whether trying again unchanged can succeed."""

    recoverable = False

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.detail:
            parts.append(self.detail)
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    @property
    def line(self) -> str:
        """All of it in one line, for status."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.message}{detail}" + (f"; hint: {self.hint}" if self.hint else "")


class UsageError(SyncagentError):
    """The command or the configuration asks for something impossible."""


class RefusedError(SyncagentError):
    """Understood, and may not be done."""


class DatabaseError(SyncagentError):
    """The site's PostgreSQL said no."""


class Unreachable(DatabaseError):
    """No connection to the site's PostgreSQL, or it went away."""

    recoverable = True


class LacksPrivilege(DatabaseError):
    """The role lacks a grant."""


class Contended(DatabaseError):
    """A lock was not to be had in time; nothing was changed. `row`: who it was that others hold, its table's number and its
    key, where the batch does not say it."""

    recoverable = True
    row: tuple[int, str] | None = None


class ConstraintBroken(DatabaseError):
    """Rows of a batch break a constraint of their table."""

    recoverable = True


class Inexact(DatabaseError):
    """Plain rows met metadata of their keys: the batch is needed in exact form."""

    recoverable = True


class DiskFull(DatabaseError):
    """No space left where PostgreSQL writes."""

    recoverable = True


class CopyDiffers(DatabaseError):
    """Rows that were copied are not those that the donor has read; nothing of the range was kept."""

    recoverable = True


class ProtocolError(SyncagentError):
    """A peer sent what the protocol does not allow."""


class DamagedFrame(ProtocolError):
    """Bytes that do not match their digest, or stop too early."""

    recoverable = True


class Undecided(SyncagentError):
    """The cluster cannot agree on it now: no leader is known, or it is busy."""

    recoverable = True


class TrustError(SyncagentError):
    """A certificate that is not listed, or not the one expected."""


class LinkDown(SyncagentError):
    """A peer cannot be reached, or its link has ended."""

    recoverable = True


class SpoolFull(SyncagentError):
    """No room for a batch on its way; nothing of it was shipped or applied."""

    recoverable = True


class HomeFailed(SyncagentError):
    """What must be kept in the site's home before it leaves the site cannot be."""

    recoverable = True
