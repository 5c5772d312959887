"""No password is ever printed, whatever form its URL has and whatever goes wrong with it."""

import json
import re
import string
from contextlib import suppress
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import Site, simulate
from workqueue.errors import LedgerUnreachable, SettingInvalid
from workqueue.ledger import open_ledger
from workqueue.settings import Settings, hide_password, split_uris

# Each has a part that nothing else in a message has.
passwords = st.builds(
    "{}Zq7{}".format,
    st.text(string.ascii_letters + string.digits + "/?#@,:%&=[] !$'\"\\;+.-é", max_size=8),
    st.text(string.ascii_letters + string.digits + "/?#@,:%&=[] !$'\"\\;+.-é", max_size=8),
)
FORMS = [
    "amqp://me:{}@host:5672/vhost",
    "amqps://me:{}@host",
    "amqp://:{}@[::1]:5672/",
    "amqp://me:fine@first,amqp://me:{}@second/v?heartbeat=3",
    "amqp://host/v?password={}",
    "postgresql://me:{}@host:5432/database?sslmode=require",
    "postgresql://me@host/database?password={}",
    "postgresql://me@host/database?sslmode=require&sslpassword={}&connect_timeout=3",
    "postgresql://me:{}@h1:5432,h2:5433/database",
    "postgres://me:{}@host/database",
    "host=host user=me password={} dbname=database",
    "host=host user=me password='{}'",
    "mysql://me:{}@host/database",
    "me:{}@host",
    "sqlite://me:{}@host/database",
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FORMS), passwords)
def test_a_url_is_shown_without_its_password(form: str, password: str) -> None:
    for url in (form.format(password), form.format(quote(password)), form.format(quote(password, safe=""))):
        for part in split_uris(url):
            assert "Zq7" not in hide_password(part)
        assert "Zq7" not in hide_password(url)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FORMS), passwords)
def test_neither_a_setting_nor_the_line_about_a_bad_one_shows_a_password(form: str, password: str) -> None:
    for value in (form.format(password), form.format(quote(password, safe=""))):
        for name in ("AMQP_URI", "LEDGER_URL"):
            try:
                shown = repr(Settings.load({name: value}))
            except SettingInvalid as error:
                shown = f"{error} {error.value} {error.args}"
            if not (name == "LEDGER_URL" and value.startswith("sqlite:")):  # there it is a path
                assert "Zq7" not in shown


@settings(max_examples=400, deadline=None)
@given(st.text())
def test_any_text_at_all_can_be_hidden(text: str) -> None:
    hide_password(text)
    split_uris(text)


@settings(max_examples=400, deadline=None)
@given(passwords)
def test_a_ledger_url_that_is_accepted_is_one_that_the_driver_reads_as_it_is_meant(password: str) -> None:
    for value in (f"postgresql://me:{password}@host/db", f"postgresql://me:{quote(password, safe='')}@host/db"):
        with suppress(SettingInvalid):
            url = Settings.load({"LEDGER_URL": value}).ledger_url
            read = psycopg.conninfo.conninfo_to_dict(url)
            assert (read["user"], read["host"], read["dbname"]) == ("me", "host", "db")


@pytest.mark.parametrize("password", ["a%00", "%A0", "%C3%28"])
def test_an_encoding_that_the_driver_does_not_take_is_refused(password: str) -> None:
    with pytest.raises(SettingInvalid, match="percent-encode"):
        Settings.load({"LEDGER_URL": f"postgresql://me:{password}@host/db"})


def test_a_password_that_is_encoded_is_accepted_whatever_it_is() -> None:
    encoded = quote("p/a?s#s@w,o:r%d &=[]", safe="")
    url = f"postgresql://me:{encoded}@host:5432/db?sslmode=require&options=-csearch_path%3Dmine"
    assert Settings.load({"LEDGER_URL": url}).ledger_url == url
    uri = f"amqp://me:{encoded}@host:5672/vhost"
    assert Settings.load({"AMQP_URI": uri}).amqp_uri == (uri,)


def test_a_comma_in_a_password_divides_no_list() -> None:
    uris = ("amqp://me:pa,ss@first", "amqps://me:a,b,c@second/v")
    assert Settings.load({"AMQP_URI": ", ".join(uris)}).amqp_uri == uris


async def test_what_a_ledger_says_of_its_failure_has_no_password(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("postgresql://me:Zq7@127.0.0.1:1/db", "postgresql://me@127.0.0.1:1/db?password=Zq7"):
        loaded = Settings.load({"LEDGER_URL": url})
        with pytest.raises(LedgerUnreachable) as caught:
            await open_ledger(loaded)
        assert "Zq7" not in str(caught.value)
    assert "Zq7" not in caplog.text


@pytest.mark.parametrize(
    "environment",
    [
        {"AMQP_URI": "amqp://me:Zq7,x@127.0.0.1:1/"},
        {"AMQP_URI": "amqp://me:Zq7/x@127.0.0.1:1/"},
        {"AMQP_URI": "amqp://127.0.0.1:1/?password=Zq7"},
        {"LEDGER_URL": "postgresql://me:Zq7%x@127.0.0.1:1/db"},
        {"LEDGER_URL": "postgresql://me:Zq7 x@127.0.0.1:1/db"},
        {"LEDGER_URL": "postgresql://me@127.0.0.1:1/db?password=Zq7"},
        {"LEDGER_URL": "host=127.0.0.1 port=1 password=Zq7"},
    ],
    ids=str,
)
async def test_neither_script_prints_a_password(site: Site, environment: dict[str, str]) -> None:
    worker = await site.worker(ready=False, **environment)
    produced = await site.producer("--jsonl", "-", "--wait", lines=json.dumps(simulate(1)[0]), **environment)
    assert await worker.ended() in (2, 3)
    assert produced.code in (2, 3)
    for said in (worker.text(), produced.err + produced.out):
        assert "Zq7" not in said
        assert "Traceback" not in said
        assert re.search("AMQP_URI|LEDGER_URL", said)
