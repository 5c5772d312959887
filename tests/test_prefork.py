"""Scripts that are started as forks: what differs from an interpreter's start is nothing that they see."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workqueue.testing import until
from workqueue.testing.prefork import IS_POSSIBLE, Forked, start
from workqueue.testing.processes import run_to_end

pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="forks are watched by pidfd, which only Linux has")

SEEN = """
import json, os, random, signal, sys, threading
import beside
print(json.dumps({
    "argv": sys.argv[1:], "folder": os.getcwd(), "mine": os.environ.get("MINE"), "path": sys.path[0],
    "name": __name__, "given": sys.stdin.read(), "threads": threading.active_count(),
    "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "signals": [str(signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "beside": beside.VALUE, "umask": os.umask(0o22),
}))
print("an error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "beside.py").write_text(f"VALUE = {str(tmp_path)!r}")
    return tmp_path / "seen.py"


@pytest.mark.parametrize("command", [["seen.py"], ["-m", "seen"]], ids=" ".join)
@pytest.mark.slow
async def test_a_fork_sees_what_a_new_interpreter_sees(script: Path, tmp_path: Path, command: list[str]) -> None:
    environment = {**os.environ, "MINE": "a value"}
    arguments = [*command, "--flag", "ä"]
    done = await run_to_end(arguments, tmp_path, environment, "given ü".encode())
    real = subprocess.run(  # noqa: ASYNC221
        [sys.executable, *arguments], cwd=tmp_path, env=environment, input="given ü".encode(), capture_output=True
    )
    assert (done.code, done.err) == (real.returncode, real.stderr.decode()) == (3, "an error\n")
    assert json.loads(done.out) == json.loads(real.stdout)


async def test_each_fork_is_one_of_its_own(script: Path, tmp_path: Path) -> None:
    """Nothing that one does is there in the next one; and each draws other numbers."""
    (tmp_path / "draws.py").write_text(
        "import os, random, sys, uuid\nprint(random.random(), uuid.uuid4(), 'beside' in sys.modules, os.getpid())\n"
        "import beside"
    )
    told = [(await run_to_end(["draws.py"], tmp_path, os.environ)).out.split() for _ in range(3)]
    assert [len({one[place] for one in told}) for place in range(4)] == [3, 3, 1, 3]
    assert told[0][2] == "False"


async def test_how_a_fork_ended_is_known_as_of_any_process(tmp_path: Path) -> None:
    def run(code: str) -> Forked:
        (tmp_path / "code.py").write_text(code)
        process = start(["code.py"], tmp_path, os.environ, (0, null, null))
        assert isinstance(process, Forked)
        return process

    null = os.open(os.devnull, os.O_RDWR)
    try:
        assert run("raise SystemExit(70)").wait(10) == 70
        assert run("raise ValueError").wait(10) == 1
        assert run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").wait(10) == -signal.SIGKILL
        assert run("import threading, time; threading.Timer(0.1, print).start()").wait(10) == 0
        lasting = run("import time; time.sleep(60)")
        with pytest.raises(subprocess.TimeoutExpired):
            lasting.wait(0.05)
        assert (lasting.poll(), lasting.returncode) == (None, None)
        lasting.terminate()
        await until(lambda: lasting.poll() is not None, "it ends")
        assert lasting.returncode == -signal.SIGTERM
        lasting.kill()  # of a process that has ended: nothing
    finally:
        os.close(null)


async def test_what_an_interpreter_reads_at_its_start_gets_one(script: Path, tmp_path: Path) -> None:
    (tmp_path / "flags.py").write_text("import sys; print(sys.flags.dev_mode)")
    for environment, told in (({}, "False\n"), ({"PYTHONDEVMODE": "1"}, "True\n")):
        assert (await run_to_end(["flags.py"], tmp_path, {**os.environ, **environment})).out == told


async def test_a_process_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    )
    with pytest.raises(AssertionError, match="the process ends"):
        await run_to_end(["long.py"], tmp_path, os.environ, b"x" * 1_000_000, within_s=2.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
