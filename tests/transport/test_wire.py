"""Control messages and frame heads: what goes in comes out, and anything else is refused by name."""

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import wire
from syncagent.core.batch import BatchHeader
from syncagent.core.wire import (
    Bye,
    Hello,
    Mark,
    Marked,
    Message,
    Ping,
    Pong,
    Progress,
    Refused,
    Want,
)
from syncagent.errors import ProtocolError
from tests.transport.sites import header

ID = UUID("01890000-0000-7000-8000-000000000001")
MESSAGES: list[Message] = [
    Hello(1, "c", 65535, "sité", ID, ID, "0.1", ID),
    Ping(1.5),
    Pong(1.5, 1e9),
    Want(0, None, plain=True),
    Want(2**62, ID, plain=False),
    Refused("unknown-cut", "cut 7 was never made here", "start over"),
    Refused("log-cut", "gone"),
    Progress({1: 5, 65535: 2**62}, 3, "a lock of pid 12"),
    Mark(ID),
    Marked(ID, {}),
    Bye("stopping"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_survives(message: Message) -> None:
    assert wire.decode(wire.encode(message)) == message


def test_a_field_of_a_newer_agent_is_ignored() -> None:
    newer = msgspec.msgpack.encode({"type": "Ping", "sent": 1.0, "colour": "blue"})
    assert wire.decode(newer) == Ping(1.0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"type": "Want", "after": "7", "after_id": None, "plain": True}, "`int`"),
        ({"type": "Want", "after": 7}, "after_id"),
        ({"type": "Shout"}, "Shout"),
        ({"sent": 1.0}, "type"),
        ([1, 2, 3], "object"),
        ({"type": "Mark", "request": "no uuid"}, "UUID"),
        ({"type": "Progress", "frontier": {"a": 1}, "parked": 0}, "int"),
    ],
)
def test_a_malformed_message_says_what_is_wrong(said: object, why: str) -> None:
    with pytest.raises(ProtocolError, match="control message is malformed") as caught:
        wire.decode(msgspec.msgpack.encode(said))
    assert why in str(caught.value.detail)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (wire.decode, wire.decode_header, wire.unpack_head):
        try:
            read(data)
        except ProtocolError:
            pass
    wire.greeting(data)


@given(st.data())
def test_a_damaged_message_raises_nothing_else(data: st.DataObject) -> None:
    sound = bytearray(wire.encode(data.draw(st.sampled_from(MESSAGES))))
    sound[data.draw(st.integers(0, len(sound) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        wire.decode(bytes(sound))
    except ProtocolError:
        pass


def test_the_protocol_number_is_read_from_a_hello_that_is_not_understood() -> None:
    assert wire.greeting(msgspec.msgpack.encode({"type": "Hello", "protocol": 9, "site": [1]})) == 9
    assert wire.greeting(wire.encode(Ping(1.0))) is None
    assert wire.greeting(b"\xc1") is None


def test_a_header_survives() -> None:
    sent: BatchHeader = header(3, 10, 20, upto=9, contexts=4)
    assert wire.decode_header(wire.encode_header(sent)) == sent
    with pytest.raises(ProtocolError, match="batch header is malformed"):
        wire.decode_header(wire.encode(Ping(1.0)))
