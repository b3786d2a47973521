"""Numbers that several parts rely on, and the relations between them that must hold.

Invariant: every relation is asserted here, at import, so that a change of one number that breaks
another part fails at once and by name. Times are seconds unless the name says otherwise.
"""

# ---- links
FRAME_SIZE = 128 * 1024
"""Largest piece of raw COPY bytes in one frame."""
MESSAGE_SIZE = 4 * 1024 * 1024
"""Largest control message or batch header; a header grows with tables and with cuts in its range."""
SPOOL_MEMORY = 8 * 1024 * 1024
"""Bytes of one batch kept in memory before the rest goes to a temporary file."""
PING_INTERVAL = 5.0
LINK_TIMEOUT = 20.0
"""A link without any sign of life for so long is closed."""
RELAY_AFTER = 2.0
"""An origin without a link for so long is asked for at another peer; a link that was lost is mostly back by then."""
ASK_AGAIN = 60.0
"""A want without an answer, and without a byte of one, is repeated. Repeating is harmless."""

# ---- credit
WINDOW = 2
"""Batches of one origin at a receiver: one being applied, the next one on its way."""
KNOT_WINDOW = 32
KNOT_SIZE = 16 * 1024 * 1024
"""Batches, and their raw bytes, of one origin while they wait for those of others, and these for them."""

# ---- cuts
CUT_INTERVAL = 0.005
"""Least time between two cuts while peers wait: what commits meanwhile shares one."""
CUT_REST = 2.0
CUT_INTERVAL_MOST = 0.25
"""After a cut the origin rests so many times as long as it took, or the one before it if that was quicker: cuts that take as long as
the last one use a third of the time at most."""
KNOWLEDGE_INTERVAL = 1.0
"""Least time before an empty cut is made only to tell what was applied here."""
IDLE_CUT_INTERVAL = 1.0
IDLE_CUT_MOST = 16.0
IDLE_CUT_SHARE = 16
"""Least and most time between cuts that nobody asks for, in between a sixteenth of the time that nobody has asked.
They keep the unfolded log short, so that little is left to do for whoever comes back; each makes its header longer."""
BUSY_POLL = 0.002
IDLE_POLL = 0.25
ASTIR_POLL = 0.02
POLL_GROWTH = 1.25
"""How often the log is looked at: from busy to idle, each pause so many times the one before; so what comes after a silence waits a
quarter of it at most. Where others' batches are merged it is not longer than astir: whoever reads them may answer."""

# ---- apply
LOCK_TIMEOUT = 0.010
"""How long a merge or a cut waits for a lock before it gives everything back."""
MERGE_FUNCTION = 1.0
"""How long functions of the application may take for what a batch has joined, and a millisecond more for each of its rows."""
DEADLOCK_TIMEOUT = 1.0
"""PostgreSQL's default; the application must never be its victim because of the agent."""
RETRY_FIRST = 0.010
RETRY_MOST = 5.0
"""Backoff of a batch that could not be applied."""

# ---- conflicts
CONFLICT_HISTORY = 365 * 86400.0
"""How long they are kept after they were noticed, unless they are open or the site's settings say otherwise."""

# ---- clocks
MAX_CLOCK_SKEW = 5.0
"""A batch with a stamp further ahead of the wall clock is held."""
CLOCK_OFFSET = 1.0
"""A clock that is further from another site's is told of."""
CLOCK_LEAD = 0.002
"""A clock that fell behind is set so far ahead of the wall."""

# ---- certificates
CERTIFICATE_LIFETIME = 730 * 86400.0
CERTIFICATE_NOTICE = 30 * 86400.0
"""How long before its end a certificate is asked to be renewed. Nobody is refused for its end."""

# ---- agreement
RAFT_TICK = 0.1
RAFT_HEARTBEAT = 4
RAFT_ELECTION = 13
"""Ticks. A follower that hears nothing for RAFT_ELECTION to twice as many campaigns."""
RAFT_RESEND = 100
"""Ticks after which a snapshot without an answer is asked about."""
RAFT_APPEND = 1024 * 1024
"""Bytes of entries in one append, and applied at a time; no entry's data is larger."""
RAFT_WINDOW = 16
"""Appends to one site without an answer."""
RAFT_UNCOMMITTED = 1024
"""Entries that a leader takes before it has committed them, and reads before it has confirmed them."""

# ---- the copy of the rows for a site that joins
COPY_RANGE_ROWS = 200_000
COPY_RANGE_SIZE = 64 * 1024 * 1024
"""About so much is read in one snapshot at the donor, and lost if it is interrupted."""
COPY_SCATTERED = 5
"""Ranges of a table that is not stored in the order of its key are so many times larger: each may read all of it."""
COPY_SESSIONS = 4
"""Ranges that a donor reads at a time, whoever asks."""
COPY_BUSY = 1000.0
"""Rows a second that are written at a donor which gives way to its application altogether; less, as much less."""
COPY_REST = 8.0
COPY_REST_MOST = 4.0
"""A donor that gives way reads one range at a time, and rests so many times as long as it took; so long at most."""
COPY_CUT_PATIENCE = 5.0
"""How long a donor waits for its own next cut before it says that there is none."""
COPY_STALLED = 60.0
"""A range of which no byte passes for so long is given up."""

# ---- the forest
SEAL_GRACE = 60.0
"""A bucket is sealed so long after its time has ended."""
VERIFY_INTERVAL = 10.0
"""So often a site compares itself with another one."""
VERIFY_SHARE = 5.0
VERIFY_MOST = 600.0
"""After a comparison it waits so many times as long as that took, if that is more; so long at most."""
VERIFY_PATIENCE = 30.0
"""Whoever asks nothing more for so long is done; whoever does not answer for so long is given up."""
VERIFY_PREPARE = 3600.0
"""The same while the peer seals what is due, or computes everything from its rows."""
VERIFY_REST = 2.0
"""After a step of sealing it rests so many times as long as it took."""
SCRUB_PERIOD = 86400.0
"""So often every sealed row is read again, though nobody has said that it was written."""
SCRUB_REST = 20.0
"""After a step of that it rests so many times as long as it took."""
REPAIR_PATIENCE = 30.0
"""A listing that was asked for, and has not come in so long, is given up; so is one that cannot be taken."""

MAX_NODE = 0xFFFF
"""Node numbers are 1 .. MAX_NODE; zero is nobody."""

assert FRAME_SIZE < MESSAGE_SIZE, "a frame fits into a message"
assert FRAME_SIZE * 4 <= SPOOL_MEMORY, "the spool holds several frames before it spills"
assert PING_INTERVAL * 3 < LINK_TIMEOUT < ASK_AGAIN, "a dead link is noticed before a want is repeated"
assert KNOT_WINDOW > WINDOW, "a knot can be closed"
assert WINDOW >= 2, "the next batch travels while one is applied"
assert CUT_INTERVAL <= CUT_INTERVAL_MOST < KNOWLEDGE_INTERVAL, "a long cut delays the next one, within reason"
assert CUT_INTERVAL < KNOWLEDGE_INTERVAL <= IDLE_CUT_INTERVAL, "work first, knowledge next, nobody last"
assert IDLE_CUT_INTERVAL < IDLE_CUT_MOST, "a log that nobody reads is folded seldom, and then for ever"
assert VERIFY_INTERVAL < VERIFY_MOST, "even where comparisons take long there are some"
assert BUSY_POLL < ASTIR_POLL < IDLE_POLL, "whoever only merges looks seldom, and not as seldom as at rest"
assert BUSY_POLL <= CUT_INTERVAL, "polling does not delay a cut"
assert IDLE_POLL < KNOWLEDGE_INTERVAL, "an idle poll is no reason to be late"
assert LOCK_TIMEOUT * 10 <= DEADLOCK_TIMEOUT, "the agent gives way long before a deadlock is looked for"
assert RETRY_FIRST >= LOCK_TIMEOUT, "a retry gives the lock's owner time"
assert CLOCK_LEAD * 100 < MAX_CLOCK_SKEW, "a healthy clock is never mistaken for a wrong one"
assert CERTIFICATE_NOTICE * 2 < CERTIFICATE_LIFETIME, "a new certificate is not asked to be renewed at once"
assert COPY_CUT_PATIENCE < COPY_STALLED, "a donor that waits for its cut answers before it is given up"
assert COPY_REST_MOST * COPY_SESSIONS * 2 < COPY_STALLED, "a range that waits its turn is not given up"
assert RAFT_HEARTBEAT * 3 < RAFT_ELECTION, "two heartbeats may be lost before a leader is given up"
assert RAFT_TICK * RAFT_ELECTION * 2 < 3, "a new leader within three seconds"
assert RAFT_TICK * RAFT_HEARTBEAT >= 0.2, "an answer that takes so long is no reason for a second question"
assert RAFT_ELECTION * 2 < RAFT_RESEND, "whoever is gone is found out before it is asked again"
assert RAFT_APPEND * 3 < MESSAGE_SIZE, "an append fits into a message: one entry is taken whatever its size"
