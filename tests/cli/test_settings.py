"""config.toml: what is written is what is read, and what is wrong is said with its place."""

import stat
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from syncagent.core.lapse import Bounds
from syncagent.errors import UsageError
from syncagent.settings import FILE, Settings, default_home, load, write


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
        addresses={"tokyo": "10.8.0.2:7400"},
    )


def test_what_is_written_is_read(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, refuse_typed=True)
    path = write(settings)
    assert load(settings.home) == settings
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_never_overwritten(settings: Settings) -> None:
    write(settings)
    with pytest.raises(FileExistsError):
        write(settings)


def test_addresses_can_be_appended(settings: Settings) -> None:
    path = write(settings)
    with path.open("a") as file:
        file.write('lima = "[::1]:7400"\n')
    assert load(settings.home).addresses == {"tokyo": "10.8.0.2:7400", "lima": "[::1]:7400"}


def test_what_is_kept_for_a_site_that_is_away(settings: Settings) -> None:
    assert load_again(settings).bounds == Bounds(away=30 * 86400.0, kept=10 * 10**9)
    kept = msgspec.structs.replace(settings, bounds=Bounds(away=90.0, kept=500_000))
    assert load_again(kept).bounds == kept.bounds
    (settings.home / FILE).write_text((settings.home / FILE).read_text().replace('"90s"', '"1.5h"'))
    assert load(settings.home).bounds == Bounds(away=5400.0, kept=500_000)
    assert load(settings.home).history == 365 * 86400.0


def test_how_long_conflicts_are_kept(settings: Settings) -> None:
    short = msgspec.structs.replace(settings, history=90 * 86400.0)
    assert load_again(short).history == short.history
    assert load(settings.home).bounds == settings.bounds


def load_again(settings: Settings) -> Settings:
    (settings.home / FILE).unlink(missing_ok=True)
    write(settings)
    return load(settings.home)


def test_rates(settings: Settings) -> None:
    path = write(msgspec.structs.replace(settings, rates={"tokyo": 5e6}))
    with path.open("a") as file:
        file.write('lima = "500kB"\n')
    assert load(settings.home).rates == {"tokyo": 5e6, "lima": 5e5}


def test_address_that_peers_dial(settings: Settings) -> None:
    assert settings.address == "paris.example.org:7400"
    assert msgspec.structs.replace(settings, advertise=None).address == "0.0.0.0:7400"
    assert msgspec.structs.replace(settings, listen="none").address is None


@pytest.mark.parametrize(
    ("added", "what"),
    [
        ("nonsense", "not valid TOML"),
        ('"os lo" = "oslo:1"', "'os lo' cannot be a site's name"),
        ('oslo = "oslo"', "is not HOST:PORT"),
        ('oslo = ":7400"', "cannot be dialled"),
        ("oslo = 7400", "7400 is not text"),
        ('tokyo = "other:1"', "not valid TOML"),
        ('[rates]\nlima = "fast"', "rates: 'fast' is not a rate"),
        ("[rates]\nlima = 500000", "rates: 500000 is not text"),
        ('[limits]\naway = "long"', "limits: 'long' is not a time"),
        ('[limits]\nkept = "0GB"', "limits: '0GB' is not a size"),
        ('[limits]\nconflicts = "never"', "limits: 'never' is not a time"),
        ('[limits]\nfar = "1d"', "limits: not limits"),
        ('[schema]\ntyped = "ignore"', "schema: not what becomes of DDL that is typed by hand"),
        ('[[peer]]\nname = "tokyo"', "peers are not listed here any more"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(settings: Settings, added: str, what: str) -> None:
    path = write(settings)
    with path.open("a") as file:
        file.write(added)
    with pytest.raises(UsageError) as caught:
        load(settings.home)
    said = str(caught.value)
    assert str(path) in said
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
        ('listen = "0.0.0.0:7400"', "", "listen is missing"),
        (
            'listen = "0.0.0.0:7400"',
            'listen = "none"\nadress = 3',
            "'adress' is not a setting\nhint: write addresses",
        ),
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
