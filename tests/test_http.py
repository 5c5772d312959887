"""WORKQUEUE_HTTP: a worker's numbers, and the truth about whether it works."""

import asyncio
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ERRANDS, ROOT, Site, simulate
from tests.test_operating import MOODY
from workqueue.dev.node import Node
from workqueue.errors import SettingInvalid
from workqueue.observe import http
from workqueue.observe.counting import BOUNDS_S, Counting
from workqueue.observe.health import LEDGER_S, LOOP_S, Health
from workqueue.observe.http import Http
from workqueue.observe.metrics import Source, buckets, exposition
from workqueue.tasks.events import Dead, Done, Event
from workqueue.tasks.story import REASONS
from workqueue.testing import Worker, until, vhost

NOTICED_S = 6.0


def get(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", method=method), timeout=5) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def address_of(worker: Worker) -> str:
    found = re.search(r"answers /metrics, /livez and /readyz at http://(\S+)", worker.text())
    assert found is not None, worker.text()
    return found[1]


async def asked(address: str, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(get, address, path)


def numbers(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@contextmanager
def serving(health: Health, metrics: Any = lambda: b"") -> Iterator[str]:
    http = Http("127.0.0.1:0", health, metrics)
    yield http.address
    http.close()


def test_what_is_not_there_and_what_is_not_asked_for_by_get_is_told() -> None:
    with serving(Health()) as address:
        assert get(address, "/") == (404, "there are /metrics, /livez and /readyz\n")
        assert get(address, "/livez", "POST")[0] == 405
        assert get(address, "/livez", "HEAD") == (200, "")
        assert get(address, "/livez?a=b") == (200, "alive\n")


def test_clients_that_send_a_byte_now_and_then_take_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WHOLE_S", 0.3)
    with serving(Health()) as address:
        host, _, port = address.rpartition(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(3 * http.AT_ONCE)]
        time.sleep(0.2)
        assert sum(thread.name.startswith("Thread-") for thread in threading.enumerate()) <= http.AT_ONCE + 5
        time.sleep(0.3)
        with suppress(OSError):
            get(address, "/livez")  # it has those ended that are there for too long
        time.sleep(0.3)
        assert get(address, "/livez") == (200, "alive\n")
        for one in slow:
            one.close()


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        serving(Health()) as address,
        pytest.raises(SettingInvalid, match="each worker needs its own"),
    ):
        Http(address, Health(), lambda: b"")


def test_a_worker_is_not_ready_for_as_long_as_something_is_amiss() -> None:
    missing: dict[str, str] = {}
    health = Health(lambda: missing, stuck=lambda: [f"2 of {queue} can't be settled: no" for queue in missing])
    with serving(health) as address:
        assert get(address, "/readyz") == (503, "it starts\n")
        health.starting = False
        assert get(address, "/readyz") == (200, "ready\n")
        missing["mails"] = "no broker"
        health.ledger_s = time.monotonic() - LEDGER_S - 3
        assert get(address, "/readyz") == (
            503,
            "mails is not consumed: no broker\n2 of mails can't be settled: no\nthe ledger has not answered for 8 s\n",
        )
        missing.clear()
        health.ledger_s = time.monotonic()
        assert get(address, "/readyz") == (200, "ready\n")
        health.loop_s = time.monotonic() - LOOP_S - 2
        assert get(address, "/livez") == (503, "the event loop has not turned for 32 s\n")
        health.stopping = True
        assert get(address, "/readyz") == (503, "it stops\n")


def test_buckets_are_cumulative_and_the_last_has_all() -> None:
    counts = [1, *([0] * (len(BOUNDS_S) - 1)), 2]
    found = buckets(counts)
    assert (found[0], found[-2], found[-1]) == (("0.005", 1), ("1800.0", 1), ("+Inf", 3))


def test_every_operation_has_its_numbers_before_anything_has_happened() -> None:
    counting = Counting(lambda _: None)
    source = Source(
        "w1", "1", "2", "3", {"do_errand": ("errands", 4)}, counting, Health(), lambda: [("do_errand", 2.0), ("x", 9.0)]
    )
    text = exposition(source)().decode()
    found = numbers(text)
    assert found['workqueue_messages_total{outcome="done",queue="errands"}'] == 0
    for reason in REASONS:
        assert found[f'workqueue_dead_letters_total{{queue="errands",reason="{reason}"}}'] == 0
    assert found['workqueue_in_hand{queue="errands"}'] == 1
    assert found['workqueue_oldest_in_hand_seconds{queue="errands"}'] == 2.0
    assert found['workqueue_concurrency{queue="errands"}'] == 4
    assert found["workqueue_ready"] == 0
    assert found['workqueue_worker_info{contract="2",digest="3",version="1",worker="w1"}'] == 1
    for what, took_s in ((Done(1), 0.2), (Dead("failed", "no", "q"), 99.0)):
        counting(Event("w1", "do_errand", "nap", "1", took_s, what))
    found = numbers(exposition(source)().decode())
    assert found['workqueue_messages_total{outcome="dead",queue="errands"}'] == 1
    assert found['workqueue_dead_letters_total{queue="errands",reason="failed"}'] == 1
    assert found['workqueue_attempt_seconds_bucket{le="0.25",queue="errands"}'] == 1
    assert found['workqueue_attempt_seconds_bucket{le="+Inf",queue="errands"}'] == 2
    assert found['workqueue_attempt_seconds_sum{queue="errands"}'] == pytest.approx(99.2)


async def test_a_scrape_tells_what_the_worker_did(fast: Site) -> None:
    broken = fast.folder / "broken"
    broken.touch()
    worker = await fast.worker("one", script=MOODY, WORKQUEUE_HTTP="127.0.0.1:0", BROKEN=str(broken))
    address = address_of(worker)
    await fast.send(simulate(1))
    await until(lambda: fast.depth_is(1, fast.dead_queue), "it is dead")
    await asyncio.to_thread(broken.unlink)
    await fast.send(simulate(20))
    await until(lambda: len(fast.ended()) == 20, "twenty are done")
    queue = fast.queue

    async def told() -> dict[str, float]:
        return numbers((await asked(address, "/metrics"))[1])

    done = f'workqueue_messages_total{{outcome="done",queue="{queue}"}}'

    async def has_all() -> bool:
        return (await told())[done] == 20

    await until(has_all, "they are counted")
    found = await told()
    assert found[f'workqueue_messages_total{{outcome="retrying",queue="{queue}"}}'] == fast.receive.max_attempts - 1
    assert found[f'workqueue_dead_letters_total{{queue="{queue}",reason="failed"}}'] == 1
    assert found[f'workqueue_attempt_seconds_count{{queue="{queue}"}}'] == 20 + fast.receive.max_attempts
    assert found["workqueue_ready"] == 1
    assert found["process_resident_memory_bytes"] > 1e7


async def until_it_says(address: str, path: str, wanted: tuple[int, str], within_s: float = NOTICED_S) -> None:
    said = (0, "")

    async def says() -> bool:
        nonlocal said
        said = await asked(address, path)
        return said[0] == wanted[0] and wanted[1] in said[1]

    try:
        await until(says, f"{path} says {wanted}", within_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; it says {said}") from None


async def test_a_worker_whose_ledger_is_silent_is_not_ready_until_it_answers(fast: Site) -> None:
    worker = await fast.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    address = address_of(worker)
    await until_it_says(address, "/readyz", (200, "ready"))
    with closing(sqlite3.connect(fast.ledger_url.removeprefix("sqlite:"), isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        await until_it_says(address, "/readyz", (503, "the ledger has not answered"), LEDGER_S + 3)
        assert await asked(address, "/livez") == (200, "alive\n")
        file.execute("ROLLBACK")
    await until_it_says(address, "/readyz", (200, "ready"))


async def test_a_worker_without_a_broker_is_not_ready_until_it_is_back_and_one_that_drains_is_not_either(
    own_node: Node, tmp_path: Path, fast_project: Path
) -> None:
    site = Site(tmp_path, vhost(own_node), fast_project)
    worker = await site.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    address = address_of(worker)
    await until_it_says(address, "/readyz", (200, "ready"))
    await asyncio.to_thread(own_node.stop)
    await until_it_says(address, "/readyz", (503, f"{ERRANDS.queue.name} is not consumed: the broker is out of reach"))
    assert await asked(address, "/livez") == (200, "alive\n")
    await asyncio.to_thread(own_node.start)
    await until_it_says(address, "/readyz", (200, "ready"), 30.0)
    await site.send(simulate(1, seconds=4))
    await until(lambda: len(site.record()) == 1, "it runs")
    worker.process.terminate()
    await until_it_says(address, "/readyz", (503, "it stops"))
    await until(lambda: worker.process.poll() == 0, "it ends")
    site.stop()


async def test_a_worker_that_a_cut_finds_busy_is_ready_again_while_its_task_goes_on(
    own_node: Node, tmp_path: Path, fast_project: Path
) -> None:
    site = Site(tmp_path, vhost(own_node), fast_project)
    worker = await site.worker("one", WORKQUEUE_HTTP="127.0.0.1:0")
    address = address_of(worker)
    await site.send(simulate(1, seconds=60))
    await until(lambda: len(site.record()) == 1, "it runs")
    await asyncio.to_thread(own_node.stop)
    await until_it_says(address, "/readyz", (503, f"{ERRANDS.queue.name} is not consumed: the broker is out of reach"))
    await asyncio.to_thread(own_node.start)
    await until_it_says(address, "/readyz", (200, "ready"), 30.0)
    worker.process.kill()
    site.stop()


async def test_an_address_that_cannot_be_had_is_exit_2_and_one_line(fast: Site) -> None:
    with serving(Health()) as address:
        for value in (address, "9100", "localhost:99999"):
            worker = await fast.worker("one", ready=False, WORKQUEUE_HTTP=value)
            await asyncio.to_thread(worker.process.wait)
            assert worker.process.returncode == 2
            assert worker.text().count("\n") == 1
            assert f"WORKQUEUE_HTTP='{value}'" in worker.text()


NAME = re.compile(r"\b(?:workqueue|process)_[a-z_]+\b")
LABELS = re.compile(r"\{([^}]*)\}|by \(([^)]*)\)")


def expressions() -> dict[str, str]:
    """Of the alerts and of the dashboard, by what they are called."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    for panel in json.loads((ROOT / "deploy/grafana/workqueue.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def scraped() -> str:
    """Of a worker that did everything once."""
    counting = Counting(lambda _: None)
    queues = {"do_errand": ("errands", 4)}
    source = Source("w1", "1", "2", "3", queues, counting, Health(), lambda: [("do_errand", 2.0)])
    for what in (Done(1), Dead("failed", "no", "q")):
        counting(Event("w1", "do_errand", "nap", "1", 0.1, what))
    return exposition(source)().decode()


def test_every_expression_asks_for_metrics_and_labels_that_a_worker_has() -> None:
    names: dict[str, set[str]] = {}
    for sample in numbers(scraped()):
        name, _, labels = sample.partition("{")
        names.setdefault(name, {"instance", "job"}).update(re.findall(r"(\w+)=", labels))
    found = expressions()
    assert len(found) > 15
    for title, expression in found.items():
        asked_for = set(NAME.findall(expression))
        assert asked_for, title
        assert asked_for <= names.keys(), title
        known = set.union(*(names[name] for name in asked_for))
        for inside, by in LABELS.findall(expression):
            wanted = re.findall(r"(\w+)\s*[!=]", inside) or [word.strip() for word in by.split(",")]
            assert set(wanted) <= known, (title, wanted)
        for outcome in re.findall(r'outcome!?="(\w+)"', expression):
            assert f'outcome="{outcome}"' in scraped(), title


def test_every_metric_is_on_the_page_and_no_other() -> None:
    page = set(re.findall(r"^\| `(workqueue_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    families = set(re.findall(r"^# TYPE (workqueue_\w+)", scraped(), re.MULTILINE))
    assert page == families


RULES = [["check", "rules", "deploy/prometheus/alerts.yaml"], ["test", "rules", "tests/alerts.yaml"]]


@pytest.mark.parametrize("command", RULES)
def test_prometheus_takes_the_rules_and_each_alert_is_fired_by_its_own_fault(command: list[str]) -> None:
    """Where Prometheus' own tool is installed (on Debian: apt-get install prometheus)."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("no promtool is installed")
    told = subprocess.run([tool, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_alert_has_a_fault() -> None:
    """In tests/alerts.yaml, which promtool runs."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    named = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert [one["name"] for one in yaml.safe_load((ROOT / "tests/alerts.yaml").read_text())["tests"]] == named
