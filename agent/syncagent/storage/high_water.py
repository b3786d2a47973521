"""How far a site has let others know of it, kept in its home, outside the database that could be set back.

Two slots of a small file are written in turn, in place, and flushed: what a torn write may spoil is the older state's
successor, never both. Whoever asks while a write is under way shares the next one.

Invariant: what a call says is on disk when it returns, so nothing leaves the site that its home does not know of.
"""

import asyncio
import os
import zlib
from pathlib import Path
from uuid import UUID

import msgspec
from msgspec.structs import replace

from syncagent.core import identity
from syncagent.core.identity import Place, Standing
from syncagent.errors import HomeFailed, RefusedError

FILE = "identity"
_SLOT = 512
"""Bytes, which a disk writes whole or not at all."""
_REJOIN = "if it was restored or cloned, or a standby took over that lacked some of it: `syncagent rejoin`"


class _Record(msgspec.Struct, frozen=True):
    """`number` counts the writes: of two sound slots the larger one holds."""

    number: int
    incarnation: UUID
    place: Place
    standing: Standing


class HighWater:
    """Of one agent, while it runs."""

    def __init__(self, home: Path, incarnation: UUID) -> None:
        self._path, self._incarnation = home / FILE, incarnation
        self._record: _Record | None = None
        self._turn = asyncio.Lock()
        self._asked = self._kept = 0

    async def recognise(self, name: str, place: Place, here: Standing) -> None:
        """Raise RefusedError unless the database stands where it was, or further."""
        known = await asyncio.to_thread(self._read)
        if known is None:
            self._record = _Record(0, self._incarnation, place, here)
            await self._keep()
            return
        reason = identity.moved(known.place, place) or identity.gone_back(known.standing, here)
        if reason is not None:
            raise RefusedError(
                f"this database is not where site {name} has been: {reason}",
                detail="Going on would give numbers that the other sites know to other writes. Nothing was changed.",
                hint=_REJOIN,
            )
        self._record = replace(known, place=place)
        if known.place != place:
            await self._keep()

    async def shipping(self, cut: int, cut_id: UUID) -> None:
        """Before a batch leaves that ends at this cut."""
        if cut > self._now.standing.cut:
            await self._say(replace(self._now.standing, cut=cut, cut_id=cut_id))
        elif self._kept < self._asked:
            await self._keep()

    async def telling(self, term: int, vote: int, last_term: int, last: int) -> None:
        """Before a message of Raft leaves that says so much."""
        said = replace(self._now.standing, term=term, vote=vote, last_term=last_term, last=last)
        if said != self._now.standing:
            await self._say(said)
        elif self._kept < self._asked:
            await self._keep()

    @property
    def _now(self) -> _Record:
        assert self._record is not None, "recognised first"
        return self._record

    async def _say(self, standing: Standing) -> None:
        self._record = replace(self._now, standing=standing)
        self._asked += 1
        await self._keep()

    async def _keep(self) -> None:
        """Until what is known now is on disk."""
        mine = self._asked
        async with self._turn:
            if self._kept >= mine and mine:
                return
            upto = self._asked
            self._record = replace(self._now, number=self._now.number + 1)
            await asyncio.to_thread(self._write, self._record)
            self._kept = upto

    # ---- the file

    def _read(self) -> _Record | None:
        """The newer of the slots that are sound, of this incarnation."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(error) from error
        found = [_sound(data[start : start + _SLOT]) for start in (0, _SLOT)]
        if data and not any(found):
            raise RefusedError(
                f"{self._path} is damaged: how far this site has shipped is not known",
                hint="restore the file; or `syncagent rejoin` gives the site a new number",
            )
        known = max((one for one in found if one), key=lambda one: one.number, default=None)
        return known if known and known.incarnation == self._incarnation else None

    def _write(self, record: _Record) -> None:
        text = msgspec.json.encode(record)
        slot = b"%08x %s" % (zlib.crc32(text), text)
        assert len(slot) < _SLOT
        try:
            new = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if new:
                    os.pwrite(descriptor, b" " * 2 * _SLOT, 0)
                os.pwrite(descriptor, slot.ljust(_SLOT - 1) + b"\n", record.number % 2 * _SLOT)
                os.fsync(descriptor) if new else os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            if new:
                _flush_folder(self._path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> HomeFailed:
        return HomeFailed(
            f"{self._path} cannot be read or written",
            detail=f"{error.strerror}. Nothing is shipped that is not recorded there first.",
            hint="free space, or mend the disk or its rights",
        )


def _sound(slot: bytes) -> _Record | None:
    digest, _, text = slot.rstrip().partition(b" ")
    try:
        if int(digest, 16) == zlib.crc32(text):
            return msgspec.json.decode(text, type=_Record)
    except (ValueError, msgspec.DecodeError):
        return None
    return None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
