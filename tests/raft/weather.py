"""A network that loses, doubles, delays and reorders what it is given, and can be cut one way.

What is under way when it is cut still arrives.

Invariant: what arrives is what was sent, encoded and decoded.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from syncagent.core.raft.messages import Message, decode, encode
from tests.raft.truth import Broken
from tests.simulation.world import Schedule

_MOST = 50_000
"""Messages in one schedule. Ten times as many as any that is well."""


@dataclass
class Net:
    schedule: Schedule
    rnd: random.Random
    deliver: Callable[[Message], None]
    delay: float
    loss: float
    twice: float
    late: float
    cut: set[tuple[int, int]] = field(default_factory=set)
    sent: int = 0

    def send(self, message: Message) -> None:
        self.sent += 1
        if self.sent > _MOST:
            raise Broken(f"a storm of messages; now {message}")
        for _ in range(2 if self.rnd.random() < self.twice else 1):
            if (message.sender, message.to) in self.cut or self.rnd.random() < self.loss:
                continue
            late = self.late if self.rnd.random() < 0.05 else 1
            seconds = self.delay * late * self.rnd.uniform(0.3, 1.7)
            self.schedule.after(seconds, partial(self._arrive, encode(message)))

    def _arrive(self, data: bytes) -> None:
        self.deliver(decode(data))

    def heal(self) -> None:
        self.cut.clear()
        self.loss = self.twice = 0.0
        self.delay, self.late = min(self.delay, 0.05), 1.0
