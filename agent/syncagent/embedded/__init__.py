"""Real PostgreSQL servers for the demo, the tests and the benchmarks: nothing to install, root or not."""

from syncagent.embedded.binaries import Binaries, all_binaries, find_binaries
from syncagent.embedded.server import Server, Setting, free_port, scratch

__all__ = ["Binaries", "Server", "Setting", "all_binaries", "find_binaries", "free_port", "scratch"]
