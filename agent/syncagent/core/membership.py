"""Who belongs to the cluster."""

import msgspec


class Peer(msgspec.Struct, frozen=True):
    """Another site. Without an `address` it dials us; `sha256` is the hex digest of its DER certificate,
    `also` those of certificates that are to replace it. A `witness` holds no rows. One that has `lapsed` may ask to come
    back, and has no link."""

    name: str
    node: int
    address: str | None
    sha256: str
    also: tuple[str, ...] = ()
    witness: bool = False
    lapsed: bool = False
