"""Tokens: whole or refused, and never shown."""

from uuid import UUID

import pytest

from syncagent.core import invitation
from syncagent.core.invitation import SECRET, Token
from syncagent.errors import UsageError

TOKEN = Token(UUID(int=2**127 + 5), bytes(range(SECRET)))


def test_what_is_printed_is_read() -> None:
    assert Token.read(f" {TOKEN}\n") == TOKEN
    assert str(TOKEN).startswith("sa1-")


@pytest.mark.parametrize(
    "text", ["", str(TOKEN)[:-1], f"{TOKEN}A", str(TOKEN)[4:], f"{TOKEN}!", str(TOKEN).replace("-", "+")]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Token.read(text)
    assert caught.value.hint
    assert not text or text not in str(caught.value)


def test_a_token_is_not_shown_by_accident() -> None:
    secret = str(TOKEN)[30:]
    assert secret not in repr(TOKEN)
    assert secret not in f"{[TOKEN]}"


def test_a_proof_holds_for_one_certificate_and_one_question() -> None:
    verifier = invitation.verifier(TOKEN.secret)
    proof = invitation.proof(verifier, "ab" * 32, b"question")
    assert invitation.equal(proof, invitation.proof(verifier, "ab" * 32, b"question"))
    for other in (
        invitation.proof(verifier, "ac" * 32, b"question"),
        invitation.proof(verifier, "ab" * 32, b"another"),
        invitation.proof(invitation.verifier(bytes(SECRET)), "ab" * 32, b"question"),
        invitation.proof(TOKEN.secret, "ab" * 32, b"question"),
    ):
        assert not invitation.equal(proof, other)
