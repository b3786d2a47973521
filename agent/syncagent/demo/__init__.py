"""`syncagent demo`: three offices of a small shop on this machine, a story of load, conflicts, a cut and a heal.

Invariant: sites are driven from outside, by the commands a person would type; what the last line claims
was measured with plain SQL, and nothing that was started is left behind.
"""
