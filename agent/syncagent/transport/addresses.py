"""HOST:PORT as people write it."""

from syncagent.errors import UsageError


def host_and_port(address: str) -> tuple[str, int]:
    """Split "db.example:7400" or "[::1]:7400"; an empty host means every interface."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not port.isdecimal() or int(port) > 0xFFFF:
        raise UsageError(
            f"{address!r} is not HOST:PORT", hint="for example db1.example.org:7400 or [::1]:7400"
        )
    return host, int(port)
