"""What the run with silent hosts stands on: its schedule, its network, and that it sees what it is there to see.

The run itself is `make partition`: it takes ten minutes and needs root.
"""

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import partition
from tests.harness import ROOT
from tests.hosts import lacking
from tests.network import Wires, packed
from tests.outage import Effects, Line, Outage, done_twice, effects, log_lines, longest_gap, started_twice
from tests.partition import KINDS, plan
from workqueue.testing import Note, until
from workqueue.testing.evidence import Life

NEAR, FAR = packed("10.203.0.11"), packed("10.203.0.12")
AN_OUTAGE = Outage("broker vanishes", "rabbit1", began=100.0, healed=130.0, settled=140.0)
STEADY = [float(second) for second in range(80, 160)]

# Two hosts: a connection that is refused while all is well, and one that is cut off. The last host runs a sleeper.
TRY = """
import socket, subprocess, sys, time
from pathlib import Path
from tests.hosts import Network, isolated, ways

def ask(host, within_s=30):
    with socket.socket() as asking:
        asking.settimeout(within_s)
        try:
            asking.connect((host.address, 9))
        except OSError as error:
            print(type(error).__name__, flush=True)

def main():
    network = Network(Path(sys.argv[1]))
    here, there = network.add("here", own=True), network.add("there")
    network.start()
    ask(there)
    network.change(cut=[(there, here)])
    ask(there, within_s=2)
    network.change(delayed=[(here, there, 0.2)])
    began = time.monotonic()
    ask(there)
    print(time.monotonic() - began >= 0.2, flush=True)
    with there.inside():
        subprocess.Popen(["sleep", "86399.5"])
    print("sleeps", flush=True)
    time.sleep(60)
    return 0

sys.exit(isolated(main))
"""


@pytest.fixture
def ends() -> Iterator[dict[bytes, socket.socket]]:
    """Two hosts' ends of devices whose other ends are `Wires`': what is sent there comes out as packets."""
    pairs = {address: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for address in (NEAR, FAR)}
    for pair in pairs.values():
        for end in pair:
            end.setblocking(False)
    yield {address: pair[0] for address, pair in pairs.items()} | {b"wires" + a: p[1] for a, p in pairs.items()}
    for pair in pairs.values():
        for end in pair:
            end.close()


def packet(receiver: bytes, content: bytes) -> bytes:
    return b"\x45" + bytes(15) + receiver + content


def received(end: socket.socket) -> bytes:
    try:
        return end.recv(2000)[20:]
    except BlockingIOError:
        return b""


def wires(ends: dict[bytes, socket.socket]) -> Wires:
    return Wires({address: ends[b"wires" + address].fileno() for address in (NEAR, FAR)})


def carry(between: Wires, ends: dict[bytes, socket.socket], sender: bytes, receiver: bytes, content: bytes) -> bytes:
    """Send one packet, and return what arrives at once."""
    ends[sender].send(packet(receiver, content))
    between.carry(sender, ends[b"wires" + sender].fileno())
    return received(ends[receiver])


def test_a_cut_drops_packets_one_way_and_no_more_once_it_is_healed(ends: dict[bytes, socket.socket]) -> None:
    between = wires(ends)
    assert carry(between, ends, NEAR, FAR, b"before") == b"before"
    between.change('{"cut": [["10.203.0.11", "10.203.0.12"]], "delay_s": []}')
    assert carry(between, ends, NEAR, FAR, b"dropped") == b""
    assert carry(between, ends, FAR, NEAR, b"the other way") == b"the other way"
    between.change('{"cut": [], "delay_s": []}')
    assert carry(between, ends, NEAR, FAR, b"after") == b"after"


async def test_a_delay_lets_packets_arrive_late_and_in_order(ends: dict[bytes, socket.socket]) -> None:
    between = wires(ends)
    between.change('{"cut": [], "delay_s": [["10.203.0.11", "10.203.0.12", 0.1]]}')
    assert carry(between, ends, NEAR, FAR, b"first") == carry(between, ends, NEAR, FAR, b"second") == b""
    assert 0 < between.carry_late() <= 0.1
    assert received(ends[FAR]) == b""
    await until(lambda: between.carry_late() < 0, "the delay is over")
    assert (received(ends[FAR]), received(ends[FAR])) == (b"first", b"second")


# Two hosts by turns, each of which says where it is, and starts a script that says so.
WHERE = """
import os, sys
from pathlib import Path
from tests.hosts import Host, isolated
from workqueue.testing.prefork import start

def main():
    hosts = [Host("here", "10.203.0.11"), Host("there", "10.203.0.12")]
    for host in hosts * 2:
        with host.inside():
            print(os.readlink("/proc/thread-self/ns/net"), flush=True)
            assert start(["where.py"], Path(sys.argv[1]), dict(os.environ), (0, 1, 2)).wait(60) == 0
    return 0

sys.exit(isolated(main))
"""


@pytest.mark.broker
async def test_what_is_cut_off_gets_no_reset_and_all_of_a_run_ends_with_it(tmp_path: Path) -> None:
    if reason := lacking():
        pytest.skip(f"partition: {reason}")
    running = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", TRY, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    try:
        said = [running.stdout.readline().strip() for _ in range(5)]
        assert said == ["ConnectionRefusedError", "TimeoutError", "ConnectionRefusedError", "True", "sleeps"]
        await until(sleepers, "a program that was just started has its command line")
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
    await until(lambda: not sleepers(), "what ran on a host has ended")


@pytest.mark.broker
def test_a_script_runs_on_the_host_of_the_thread_that_starts_it(tmp_path: Path) -> None:
    if reason := lacking():
        pytest.skip(f"partition: {reason}")
    (tmp_path / "where.py").write_text("import os; print(os.readlink('/proc/self/ns/net'), flush=True)")
    done = subprocess.run([sys.executable, "-c", WHERE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert said[::2] == said[1::2]
    assert len(set(said)) == 2


def sleepers() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"86399.5" in command and b"sleep\0" in command:
            found.append(folder.name)
    return found


def test_without_root_the_run_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["partition"])
    assert partition.main() == 2
    assert capsys.readouterr().err.startswith("partition: skipped: needs root and network namespaces")


def test_the_same_seed_gives_the_same_schedule_and_it_has_every_kind_once() -> None:
    kinds = tuple(KINDS)
    assert plan(1, None, kinds) == plan(1, None, kinds) != plan(2, None, kinds)
    for seed in range(20):
        assert sorted(fault.kind for fault in plan(seed, None, kinds)) == sorted(kinds)
        assert 1 <= len(plan(seed, 100.0, kinds)) <= 3
        assert len(plan(seed, 1000.0, kinds)) > len(kinds)
    assert [fault.kind for fault in plan(1, 1.0, ["ledger cut off"])] == ["ledger cut off"]


def test_the_longest_gap_begins_with_the_outage_and_may_end_after_it_or_never() -> None:
    assert longest_gap([90, 103, 104], 100, 110) == (104, math.inf)
    assert longest_gap([90, 103, 104, 120], 100, 110) == (104, 120)
    assert longest_gap([90, 108, 111], 100, 110) == (100, 108)
    assert longest_gap([101, 105, 109, 140], 100, 110) == (101, 105)  # what is then is another outage's
    assert longest_gap([], 100, 110) == (100, math.inf)


def without(begin: float, end: float) -> list[float]:
    return [at for at in STEADY if not begin < at < end]


def broken(outage: Outage, **more: list[float]) -> list[str]:
    return list(measured(outage, (), **more).broken())


def measured(outage: Outage, lines: Sequence[Line], /, **active: list[float]) -> Effects:
    done = sorted(at for times in active.values() for at in times)
    return effects(outage, done, active, lines)


def test_a_worker_is_back_in_time_or_not_since_it_stalled() -> None:
    assert broken(AN_OUTAGE, worker1=without(100, 119), worker2=STEADY) == []
    assert broken(AN_OUTAGE, worker1=without(105, 124), worker2=STEADY) == []
    assert broken(AN_OUTAGE, worker1=without(105, 126), worker2=STEADY) == [
        "worker1 worked again 21.0 s after it stalled (limit 20)"
    ]
    assert broken(AN_OUTAGE, worker1=without(105, 200), worker2=STEADY) == [
        "worker1 worked again inf s after it stalled (limit 20)"
    ]
    assert measured(AN_OUTAGE, (), worker1=without(100, 102), worker2=STEADY).back_s == {}


def test_one_that_could_reach_nothing_is_back_in_time_after_the_healing() -> None:
    outage = Outage("worker cut off", "worker1", 100.0, 130.0, 155.0, cut_off=frozenset({"worker1"}))
    assert broken(outage, worker1=without(100, 149), worker2=STEADY) == []
    assert broken(outage, worker1=without(100, 151), worker2=STEADY) == [
        "worker1 worked again 21.0 s after the healing (limit 20)"
    ]


def test_one_at_the_leader_has_until_the_broker_misses_it_and_the_others_have_not() -> None:
    outage = Outage("leader cut off", "rabbit1", 100.0, 140.0, 240.0, at_leader=frozenset({"worker1"}))
    steady = [float(second) for second in range(80, 300)]

    def back(at: int) -> list[float]:
        return [one for one in steady if one <= 100 or one >= at]

    assert broken(outage, worker1=back(194), worker2=steady) == []
    assert broken(outage, worker1=back(196), worker2=steady) == [
        "worker1 worked again 96.0 s after it stalled (limit 95)"
    ]
    assert broken(outage, worker1=steady, worker2=back(121)) == [
        "worker2 worked again 21.0 s after it stalled (limit 20)"
    ]


def test_a_stretch_without_a_task_done_is_too_long_unless_the_ledger_was_away() -> None:
    assert broken(AN_OUTAGE, worker1=without(100, 115)) == []
    assert broken(AN_OUTAGE, worker1=without(101, 117)) == ["no task was done for 16.0 s (limit 15)"]
    ledger = Outage("ledger cut off", "all", 100.0, 130.0, 140.0, ledger=True)
    said = Line(101.0, "worker1", "worker1  waits for the ledger: no answer")
    assert list(measured(ledger, (said,), worker1=without(100, 134)).broken()) == []
    assert broken(ledger, worker1=without(100, 136)) == [
        "worker1 worked again 6.0 s after the healing (limit 5)",
        "that the ledger is waited for was said after inf s (limit 5)",
    ]


def test_no_task_is_done_for_longer_only_where_all_senders_or_all_takers_were_at_the_leader() -> None:
    still = {"worker1": without(100, 150), "producer1": without(100, 150), "producer2": without(100, 150)}

    def told(*at_leader: str) -> list[str]:
        outage = Outage("leader cut off", "rabbit1", 100.0, 140.0, 155.0, at_leader=frozenset(at_leader))
        return [line for line in broken(outage, **still) if not line.startswith("producer")]

    idle, back = "no task was done for 50.0 s (limit 15)", "worker1 worked again 50.0 s after it stalled (limit 20)"
    assert told("producer1", "producer2") == told("worker1") == []  # nobody sent what worker1 could do
    assert told("producer1") == told() == [idle, back]


def test_a_line_that_says_that_something_is_wrong_is_false_while_packets_are_merely_late() -> None:
    text = "2026-11-25 09:30:00,500 worker1  idle although messages are ready; re-subscribing\n"
    (line,) = log_lines("worker1", text + "no line with a time\n" * 2)
    far = Outage("all hosts far apart", "all", line.at - 5, line.at, line.at + 5, delays_only=True)
    good = Line(line.at, "worker1", f"{line.at} worker1  done  simulate  an-id  20 ms")
    steady = [line.at + second for second in range(-10, 10)]
    assert list(measured(far, (good, line), worker1=steady).broken()) == [f"false: worker1 said: {line.text}"]
    assert list(measured(AN_OUTAGE, (line,), worker1=STEADY).broken()) == []


def test_an_idle_fleet_is_not_said_to_have_stalled() -> None:
    idle = Outage("leader far away", "rabbit1", 100.0, 130.0, 140.0, idle=True, delays_only=True)
    assert broken(idle, worker1=without(99, 131)) == []


def test_a_task_done_again_is_wrong_unless_an_outage_kept_the_first_end_from_being_recorded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"2026-11-25 09:30:00,500 worker2  done  simulate  {id}  9 ms\n" for id in "abb"))
    lives = [Life("worker2", 2, log, 0.0)]
    notes = [
        *(Note("end", "a", f"worker{number}", number, at) for number, at in ((1, 101.0), (2, 135.0))),
        *(Note("end", "b", f"worker{number}", number, at) for number, at in ((1, 102.0), (2, 136.0))),
        *(Note("end", "c", "worker1", 1, at) for at in (50.0, 60.0)),
        Note("end", "d", "worker1", 1, 51.0),
    ]
    wrong, honest = done_twice(notes, lives, [AN_OUTAGE])
    assert honest == {"a": "2 ends, 1 recorded"}
    assert wrong == {"b": "2 ends, 2 recorded", "c": "2 ends, 0 recorded"}


def runs(first: float, second: float, end: float | None = None) -> list[Note]:
    notes = [Note("start", "a", "worker1", 1, first), Note("start", "a", "worker2", 2, second)]
    return [*notes, *([Note("end", "a", "worker1", 1, end)] if end is not None else [])]


def test_a_task_that_begins_while_another_claim_on_it_is_alive_is_started_twice() -> None:
    assert started_twice(runs(1, 2, end=3), [], {}, lease_s=10) == ["a began on worker2 while worker1 worked at it"]
    assert started_twice(runs(1, 3, end=2), [], {}, lease_s=10) == []
    assert len(started_twice(runs(99, 105), [AN_OUTAGE], {}, lease_s=10)) == 1
    assert started_twice(runs(99, 110), [AN_OUTAGE], {}, lease_s=10) == []
    assert len(started_twice(runs(10, 15), [], {1: 12.0}, lease_s=10)) == 1
    assert started_twice(runs(10, 21), [], {1: 12.0}, lease_s=10) == []
