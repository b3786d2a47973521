"""The benchmarks behind `syncagent bench`: programs, never assertions.

Invariant: what is compared runs in one run, in turn, on the same two servers with the same settings, each time on
a fresh copy of the same seeded database; and a result counts only if both sites are equal afterwards.
"""
