"""Executable model of what is appended to in `merge`: a column is its *beginning* and *pieces*, one for each write, in the order of their stamps.

An entry of a node has, of each of its pieces that is there, stamp, cut and length: the text itself is the column's value, which ends with
all pieces. Who does more than append replaces all that he has read: his entry tells the cut of that (a *mark*), and there is no beginning.

Two states are joined by what each side has seen, as in `merging`. A piece stays if both have it, or if the one that lacks it has not seen
it. If that one has seen it, it was replaced, if there is a mark; else it has become part of that one's beginning, for pieces are
dropped all together only, and the other's beginning is the one that holds. Only one of two sides can have dropped pieces of the other.

Every run checks what `merging` checks, and that each piece is there once, at its place, unless who replaced it had read it.

Run:               python -m tests.model.appended [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break last|dropped|beginning|mark|whole   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field, replace

from tests.model import asked, columns, merging, play
from tests.model.merging import Column, Merged, Part

BREAKS = {
    "last": "of what a node has appended only its last write is told",
    "dropped": "a piece that the other side has seen, and lacks, counts as replaced",
    "beginning": "the beginning stays the one that is here",
    "mark": "a write that replaces all leaves the beginning to those who have it",
    "whole": "a piece that the other side has seen, and lacks, counts as part of its beginning",
}
BROKEN = None  # one of BREAKS


def pieces(parts):
    """(stamp, node) -> (cut, length), of all nodes in order."""
    return dict(sorted(((stamp, node), told) for node, part in parts.items() for stamp, told in part.tells[1].items()))


def texts(value, parts):
    """The beginning, and the text of each piece."""
    found, at = {}, len(value) - sum(length for _, length in pieces(parts).values())
    assert at >= 0, "a write was lost: there are more pieces than text"
    beginning = value[:at]
    for each, (_, length) in pieces(parts).items():
        found[each] = value[at:at + length]
        at += length
    return beginning, found


def join_pieces(mine, theirs, here, there, stats):
    (value, parts), (other, others) = mine, theirs
    (beginning, ours), (their_beginning, came) = texts(value, parts), texts(other, others)
    marks = [{node: part.tells[0] for node, part in side.items() if part.tells[0]} for side in (parts, others)]
    live, dropped = {}, [False, False]
    for side, (told, lacking, seen) in enumerate(((pieces(parts), came, there), (pieces(others), ours, here))):
        for each, (cut, length) in told.items():
            if each not in lacking and cut <= seen(each[1]):
                if BROKEN == "dropped" or marks[1 - side] and BROKEN != "whole":
                    continue
                dropped[side] = True
            live[each] = (cut, length)
    assert not all(dropped) or BROKEN, "each side has dropped what the other has"
    if any(marks) and BROKEN != "mark":
        beginning = ()
    elif dropped[1] and BROKEN != "beginning":
        stats["told by theirs"] += 1
        beginning = their_beginning
    elif not dropped[0] and not any(marks):
        assert beginning == their_beginning or BROKEN, "a write was lost: two beginnings"
    text = ours | came
    joined = {}
    for node in parts | others:
        newest = max((p[node] for p in (parts, others) if node in p), key=lambda part: part.cut)
        told = {stamp: told for (stamp, origin), told in live.items() if origin == node}
        if BROKEN == "last":
            told = dict(sorted(told.items())[-1:])
        joined[node] = replace(newest, tells=(max(side.get(node, 0) for side in marks), told))
    stats["pieces"] += len(live)
    return beginning + tuple(token for each in pieces(joined) for token in text[each]), joined


class Site(merging.Site):
    """All columns are appended to."""

    def siblings(self, key):
        return {}

    def insert(self, key, write, now, truth):
        columns.Site.insert(self, key, write, now, truth)
        row = self.rows[key]
        self.rows[key] = Merged(row.life, None, {name: (write,) for name in columns.COLUMNS}, {}, row.past, write)
        truth.set_out(key, write)

    def update(self, key, changed, write, now, truth):
        row, rnd = self.rows[key], random.Random(write)
        stamp, cut = self._stamp(now, row).stamp, self.cuts + 1
        values, entries = dict(row.values), dict(row.entries)
        for name in changed:
            parts, whole = dict(entries.get(name, Column()).parts), rnd.random() < 0.15
            mark, told = parts[self.me].tells if self.me in parts else (0, {})
            if whole:
                truth.replaced(key, row.true_life, name, values[name])
                parts = {node: replace(part, tells=(part.tells[0], {})) for node, part in parts.items()}
                values[name], mark, told = (), cut, {}
            texts = ((write, 0), (write, 1))[:rnd.choice([1, 1, 2, 2 - 2 * whole])]
            parts[self.me] = Part(stamp, self.me, cut, (mark, told | {stamp: (cut, len(texts))}))
            values[name] += texts
            truth.appended(key, row.true_life, name, stamp, texts)
            entries[name] = Column(parts)
        self.rows[key] = replace(row, values=values, entries=entries)

    def join_column(self, name, mine, theirs, here, there, stats):
        value, parts = join_pieces(mine, theirs, here, there, stats)
        if not merging.fresh(mine[1], there):
            assert value == theirs[0] or BROKEN, "a write was lost: who has seen all shows something else"
        return value, parts


@dataclass
class Truth(merging.Truth):
    """Of each column of each life what was appended, and what was replaced by who had read it."""
    told: dict = field(default_factory=dict)
    over: set = field(default_factory=set)
    outdone: set = field(default_factory=set)

    def set_out(self, key, life):
        for name in columns.COLUMNS:
            self.told[key, life, name] = [((0, 0), (life,))]

    def appended(self, key, life, name, stamp, texts):
        self.told[key, life, name].append((stamp, texts))

    def replaced(self, key, life, name, value):
        self.outdone |= {(key, life, name, token) for token in value}

    def rows(self):
        found = {}
        for key in columns.Truth.rows(self):
            life = max(self.lives[key], key=lambda each: self.lives[key][each])
            found[key] = {name: tuple(
                token for _, texts in sorted(self.told[key, life, name]) for token in texts if (key, life, name, token) not in self.outdone)
                for name in columns.COLUMNS}
        return found


def run(seed, stats, steps=300, coalesced=False):
    columns.run(seed, stats, steps, coalesced, kind=Site, oracle=Truth)


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
