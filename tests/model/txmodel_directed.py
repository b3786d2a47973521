"""Three schedules that random runs rarely hit, by hand, with and without the rule that mends them.

Run: python -m tests.model.txmodel_directed
"""

from collections import Counter

from tests.model import txmodel as m


def world(n):
    return [m.Site(i, n, 0) for i in range(n)], Counter(), set(), []


def write(s, xid, key, ops, w, now, truth, commit=True):
    s.open.setdefault(xid, [])
    s.execute(xid, key, ops, w, now)
    if commit:
        truth.extend(s.commit(xid))


def finish(sites, st, cf, truth):
    for turn in range(4):
        for s in sites:
            s.cut(st, cf)
        m.deliver(sites, st, cf)
        for s in sites:
            if "settle" not in m.BROKEN:
                s.settling(900 + turn * 10 + s.me, 900, truth)
    return [dict(s.rows) for s in sites]


def settle():
    sites, st, cf, t = world(2)
    a, b = sites
    key = (0, -1)
    write(a, 1, key, ["insert"], 1, 10, t, False)
    write(b, 2, key, ["insert"], 2, 15, t)
    write(b, 3, key, ["delete"], 3, 20, t)
    b.cut(st, cf)
    a.apply(1, b.out[0], st, cf)
    t.extend(a.commit(1))
    return finish(sites, st, cf, t)


def horizon():
    sites, st, cf, t = world(3)
    a, b, _ = sites
    key = (0, -1)
    write(a, 1, key, ["insert"], 1, 10, t, False)
    write(b, 2, key, ["insert"], 2, 15, t)
    write(b, 3, key, ["delete"], 3, 20, t)
    for _ in range(3):
        for s in sites:
            s.cut(st, cf)
        m.deliver(sites, st, cf)
    a.compact(st)
    b.compact(st)  # the third one has not collected yet
    t.extend(a.commit(1))
    return finish(sites, st, cf, t)


def between():
    sites, st, cf, t = world(2)
    a, b = sites
    key = (5, 7)
    write(a, 1, key, ["insert"], 1, 20, t)
    write(b, 2, key, ["insert"], 2, 10, t)
    write(b, 3, key, ["update"], 3, 15, t)
    b.cut(st, cf)
    a.cut_begin()
    a.apply(1, b.out[0], st, cf)
    a.cut_end(st, cf)
    return finish(sites, st, cf, t)


SCHEDULES = {"settle": settle, "horizon": horizon, "between": between}

if __name__ == "__main__":
    for name, schedule in SCHEDULES.items():
        for broken in (set(), {name}):
            m.BROKEN = broken
            r = schedule()
            print(name, "broken" if broken else "fixed ", r, "DIVERGED" if any(x != r[0] for x in r) else "ok")
