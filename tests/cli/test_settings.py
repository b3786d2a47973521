"""config.toml: what is written is what is read, and what is wrong is said with its place."""

import stat
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from syncagent.core.membership import Peer
from syncagent.errors import UsageError
from syncagent.settings import FILE, Settings, default_home, load, write

TOKYO = Peer("tokyo", 2, "tokyo.example.org:7400", "a" * 64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        name="paris",
        node=1,
        site=UUID(int=1),
        incarnation=UUID(int=2),
        dsn='postgresql://me:"\\x\x7f\u00e9@host/db',
        listen="0.0.0.0:7400",
        advertise="paris.example.org:7400",
        peers=(TOKYO, Peer("lima", 3, None, "b" * 64)),
    )


def test_what_is_written_is_read(settings: Settings) -> None:
    path = write(settings)
    assert load(settings.home) == settings
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_never_overwritten(settings: Settings) -> None:
    write(settings)
    with pytest.raises(FileExistsError):
        write(settings)


def test_peers_can_be_appended(settings: Settings) -> None:
    path = write(msgspec.structs.replace(settings, peers=()))
    assert load(settings.home).peers == ()
    with path.open("a") as file:
        colons = ":".join(["AB"] * 32)
        file.write(f'\n[[peer]]\nname = "lima"\nnode = 3\naddress = "[::1]:7400"\nsha256 = "{colons}"\n')
    assert load(settings.home).peers == (Peer("lima", 3, "[::1]:7400", "ab" * 32),)


def test_address_that_peers_dial(settings: Settings) -> None:
    assert settings.address == "paris.example.org:7400"
    assert msgspec.structs.replace(settings, advertise=None).address == "0.0.0.0:7400"
    assert msgspec.structs.replace(settings, listen="none").address is None


def entry(**values: object) -> str:
    complete: dict[str, object] = {"name": "oslo", "node": 4, "address": "oslo:7400", "sha256": "c" * 64}
    lines = (f"{key} = {value!r}\n" for key, value in (complete | values).items() if value is not None)
    return "\n[[peer]]\n" + "".join(lines)


@pytest.mark.parametrize(
    ("added", "place", "what"),
    [
        ("\nnonsense", "at end of document", "not valid TOML"),
        (entry(adress="oslo:1"), "line {line}, [[peer]] 3", "'adress' is not a setting\nhint: write address"),
        (entry(sha256=None), "line {line}, [[peer]] 3", "sha256 is missing"),
        (entry(sha256="abc"), "[[peer]] 3", "not a SHA-256"),
        (entry(node=0), "[[peer]] 3", "0 is not a node number"),
        (entry(node=True), "[[peer]] 3", "True is not a node number"),
        (entry(name="os lo"), "[[peer]] 3", "cannot be a site's name"),
        (entry(address="oslo"), "[[peer]] 3", "is not HOST:PORT"),
        (entry(address=":7400"), "[[peer]] 3", "cannot be dialled"),
        (entry(address=7400), "[[peer]] 3", "7400 is not text"),
        (entry(node=2), "[[peer]] 3", "node 2 belongs to [[peer]] 1 already"),
        (entry(name="tokyo"), "[[peer]] 3", "name tokyo belongs to [[peer]] 1 already"),
        (entry(sha256="a" * 64), "[[peer]] 3", "belongs to [[peer]] 1 already"),
        (entry(node=1), "[[peer]] 3", "node 1 belongs to this site already"),
        (entry(name="paris"), "[[peer]] 3", "name paris belongs to this site already"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(settings: Settings, added: str, place: str, what: str) -> None:
    path = write(settings)
    line = len(path.read_text().splitlines()) + 2
    with path.open("a") as file:
        file.write(added.replace("True", "true"))
    with pytest.raises(UsageError) as caught:
        load(settings.home)
    said = str(caught.value)
    assert str(path) in said
    assert place.format(line=line) in said
    assert what in said
    assert caught.value.hint


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("node = 1", "", "node is missing"),
        ("node = 1", 'node = "1"', "'1' is not a node number"),
        ('site = "', 'site = "x', "is not a UUID"),
        ("max_clock_skew = 5.0", "max_clock_skew = -1", "-1 is not a number of seconds"),
        ('listen = "0.0.0.0:7400"', 'listen = "0.0.0.0"', "is not HOST:PORT"),
        ('listen = "0.0.0.0:7400"', 'listen = "none"', "neither site can dial the other"),
        ('listen = "0.0.0.0:7400"', "peer = 3", "listen is missing"),
        ('dsn = "', 'dsn = ""\n# "', "dsn is empty"),
    ],
)
def test_a_broken_value_is_named(settings: Settings, before: str, after: str, what: str) -> None:
    path = write(settings)
    text = path.read_text()
    assert before in text
    if after == "peer = 3":
        text = text[: text.index("# Every other")]
    path.write_text(text.replace(before, after))
    with pytest.raises(UsageError, match=what) as caught:
        load(settings.home)
    assert caught.value.hint


def test_a_home_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no {FILE}"):
        load(tmp_path / "missing")
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="not valid TOML"):
        load(tmp_path)


def test_default_home_depends_on_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/syncagent")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_home() == Path("/home/me/.local/share/syncagent")
