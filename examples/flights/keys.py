"""UUIDv7 keys: made here rather than by the database, so that a row has its key before it is sent anywhere.

Invariant: keys made by one process are strictly rising, in any thread and with a clock that steps back.
"""

import sys

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    import secrets
    import threading
    import time
    from uuid import UUID

    class _Counter:
        """Milliseconds, and 42 bits that count within one: RFC 9562, section 6.2, method 1."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._ms = self._count = 0

        def next(self) -> tuple[int, int]:
            with self._lock:
                now = time.time_ns() // 1_000_000
                if now <= self._ms:
                    self._count += 1
                    if self._count >> 42:  # spent: borrow the next millisecond rather than wait for it
                        now = self._ms + 1
                if now > self._ms:
                    self._ms, self._count = now, secrets.randbits(41)  # the top bit is free: room to count
                return self._ms, self._count

    _counter = _Counter()

    def uuid7() -> UUID:
        ms, count = _counter.next()
        high = ms << 16 | 0x7 << 12 | count >> 30
        low = 0b10 << 62 | (count & 0x3FFF_FFFF) << 32 | secrets.randbits(32)
        return UUID(int=high << 64 | low)


__all__ = ["uuid7"]
