"""Settings: what is read from where, and that a bad value is one line without a secret."""

from pathlib import Path
from typing import Any

import pytest

from workqueue.errors import SettingInvalid
from workqueue.settings import Settings, hide_password, misspelt

NUMBER_S = "use a number of seconds from 0.1 to 86400"
WHOLE = "use a whole number from 1 to 10000"
AMQP = "use amqp://user:password@host:port/vhost, or amqps:"
SECONDS = ("HEARTBEAT_S", "RECONNECT_S", "CHECK_S", "DRAIN_S", "SEND_S")


def test_without_any_variable_the_defaults_hold() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert settings == Settings.load({"AMQP_URI": "", "LEDGER_URL": "", "WORKQUEUE_DRAIN_S": "", "OTHER": "x"})


def test_every_setting_has_a_variable() -> None:
    settings = Settings.load(
        {
            "AMQP_URI": "amqp://me:secret@host:5673/there",
            "LEDGER_URL": "none",
            "WORKQUEUE_WINDOW": "7",
        }
        | {f"WORKQUEUE_{name}": str(number + 0.5) for number, name in enumerate(SECONDS, 1)}
    )
    assert settings.amqp_uri == ("amqp://me:secret@host:5673/there",)
    assert (settings.ledger_url, settings.window) == ("none", 7)
    assert [getattr(settings, name.lower()) for name in SECONDS] == [1.5, 2.5, 3.5, 4.5, 5.5]


def test_several_brokers_are_kept_in_their_order() -> None:
    given = " amqp://a , amqps://me:secret@b:5671/v?heartbeat=3,, amqp://[::1]:5672 "
    assert Settings.load({"AMQP_URI": given}).amqp_uri == (
        "amqp://a",
        "amqps://me:secret@b:5671/v?heartbeat=3",
        "amqp://[::1]:5672",
    )


BAD: list[tuple[str, str, str]] = [
    *(
        (f"WORKQUEUE_{name}", value, NUMBER_S)
        for name in SECONDS
        for value in ("soon", "0", "-1", "nan", "inf", "86401")
    ),
    *(("WORKQUEUE_WINDOW", value, WHOLE) for value in ("0", "-1", "1.5", "many", "10001", "1e3")),
    *(("LEDGER_URL", value, "none") for value in ("ledger.db", "sqlite:", "NONE", "redis://h")),
    *(
        ("AMQP_URI", value, AMQP)
        for value in ("host", "http://host/", "amqp://", "amqp:host", "amqp://h:0", "amqp://a,b")
    ),
    *(("AMQP_URI", value, AMQP) for value in ("amqp://h:65536", "amqp://[::1", "rabbitmq://h")),
]


@pytest.mark.parametrize(("name", "value", "way_out"), BAD)
def test_a_bad_value_is_one_line_that_names_variable_value_and_way_out(name: str, value: str, way_out: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings.load({name: value})
    told = str(caught.value)
    assert told.startswith(f"{name}={value!r}: ")
    assert way_out in told
    assert len(told.splitlines()) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "value", "way_out"), BAD)
def test_a_bad_value_from_python_is_the_same_line(name: str, value: str, way_out: str) -> None:
    field = name.removeprefix("WORKQUEUE_").lower()
    with pytest.raises(SettingInvalid) as caught:
        Settings(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field}={value!r}: {caught.value.way_out}"
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amqp_uri", ()),
        ("amqp_uri", None),
        ("amqp_uri", {"amqp://me:secret@h/"}),
        ("amqp_uri", ("amqp://me:secret@h:99999/",)),
        ("amqp_uri", ("amqp://a", None)),
        ("ledger_url", None),
        ("ledger_url", Path("ledger.db")),
        ("ledger_url", "sqlite:a\0b"),
        ("drain_s", None),
        ("drain_s", float("nan")),
        ("drain_s", 10**400),
        ("window", 1.5),
        ("window", None),
        ("log", 10),
        ("tracing", True),
        ("http", 9100),
    ],
)
def test_a_value_of_another_type_is_such_a_line_too(field: str, value: Any) -> None:
    with pytest.raises(SettingInvalid, match=f"^{field}=") as caught:
        Settings(**{field: value})
    assert "secret" not in str(caught.value)


def test_a_text_from_python_is_read_as_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"amqp_uri": "amqp://a, amqps://me:secret@b/", "ledger_url": "sqlite:l.db", "drain_s": "7", "window": "8"}
    read = Settings(**texts)  # type: ignore[arg-type]
    assert read == Settings(("amqp://a", "amqps://me:secret@b/"), f"sqlite:{tmp_path}/l.db", drain_s=7.0, window=8)
    listed: Any = list(read.amqp_uri)
    assert Settings(listed).amqp_uri == read.amqp_uri


def test_the_bad_one_of_several_brokers_is_the_one_that_is_named() -> None:
    with pytest.raises(SettingInvalid, match=r"^AMQP_URI='http://b': "):
        Settings.load({"AMQP_URI": "amqp://me:secret@a,http://b"})


def test_passwords_are_not_shown() -> None:
    settings = Settings.load({"AMQP_URI": "amqp://me:secret@a,amqps://you:s%40cret@b:5671/v"})
    assert "me:***@a" in repr(settings)
    assert "you:***@b:5671/v" in repr(settings)
    assert "cret" not in repr(settings)
    assert "cret" not in str(settings)
    shown = repr(Settings(ledger_url="postgresql://me:secret@host/db"))
    assert "me:***@host/db" in shown
    for name, value in {
        "AMQP_URI": "http://me:secret@host",
        "LEDGER_URL": "mysql://me:secret@host/db",
    }.items():
        with pytest.raises(SettingInvalid) as caught:
            Settings.load({name: value})
        assert "me:***@host" in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://host/", "amqp://host/"),
        ("amqp://me@host/", "amqp://me@host/"),
        ("amqp://me:pw@host:1/v?x=1", "amqp://me:***@host:1/v?x=1"),
        ("amqp://me:p@w@host", "amqp://me:***@host"),
        ("amqp://:pw@host", "amqp://:***@host"),
        ("amqp://me:p[w@host", "amqp://me:***@host"),
        ("amqp://me:secret", "amqp://***"),  # is it a port?
        ("postgresql://me@h/db?sslmode=require&password=a&b=c", "postgresql://me@h/db?sslmode=require&password=***"),
        ("postgresql://me@h/db?pass%77ord=a", "postgresql://me@h/db?pass%77ord=***"),
        ("postgresql://h1:5432,h2/db", "postgresql://h1:5432,h2/db"),
        ("host=h user=me password='a b'", "***"),
        ("host=h password=x://y", "***"),
        ("sqlite:/var/lib/ledger.db", "sqlite:/var/lib/ledger.db"),
    ],
)
def test_what_is_shown_of_a_url_lacks_its_password_only(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize("uri", ["amqp://me:sec/ret@host", "amqp://me:sec?ret@host", "amqp://me:sec#ret@host"])
def test_a_password_that_should_have_been_encoded_is_not_shown_either(uri: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings.load({"AMQP_URI": uri})
    assert "ret" not in str(caught.value)


def test_a_password_that_looks_like_a_port_does_not_become_one() -> None:
    with pytest.raises(SettingInvalid):
        Settings.load({"AMQP_URI": "amqp://me:12#secret@host"})


@pytest.mark.parametrize("uri", [",", " ", " , "])
def test_a_list_without_a_broker_is_refused(uri: str) -> None:
    with pytest.raises(SettingInvalid, match=r"^AMQP_URI="):
        Settings.load({"AMQP_URI": uri})


def test_settings_do_not_change() -> None:
    settings: Any = Settings()
    with pytest.raises(AttributeError):
        settings.window = 1


def test_the_default_ledger_belongs_to_the_project_and_no_later_chdir_moves_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    by_default = Settings.load({}, project=project)
    assert by_default.ledger_url == f"sqlite:{project}/.workqueue/ledger.db"
    assert Settings().of_project(project) == by_default
    assert Settings(ledger_url="none").of_project(project).ledger_url == "none"
    relative = Settings.load({"LEDGER_URL": "sqlite:a/../b.db"}, project=project)
    assert relative.ledger_url == f"sqlite:{tmp_path}/b.db"
    monkeypatch.chdir("/")
    assert by_default.is_ledger(f"{project}/.workqueue/ledger.db-wal")
    assert relative.is_ledger(f"{tmp_path}/b.db.holders/x")
    assert not relative.is_ledger(f"{tmp_path}/b.db2")
    assert not Settings.load({"LEDGER_URL": "postgresql://h/d"}).is_ledger("/h/d")


def test_a_variable_that_is_no_setting_is_told_with_the_nearest_one() -> None:
    environment = {"WORKQUEUE_DRAINS": "1", "WORKQUEUE_WINDOW": "7", "WORKQUEUE_MINE": "x", "HOME": "/", "WORK": "y"}
    told = list(misspelt(environment))
    assert told[0] == "WORKQUEUE_DRAINS is no setting, and is ignored; the nearest is WORKQUEUE_DRAIN_S"
    assert told[1].startswith("WORKQUEUE_MINE is no setting")
    assert len(told) == 2
    assert list(misspelt(environment, own=("WORKQUEUE_MINE",))) == told[:1]
    assert Settings.load(environment).window == 7
