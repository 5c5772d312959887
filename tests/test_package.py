"""The package, built and installed as people do, with this checkout out of reach."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests.harness import ROOT
from workqueue.cli import init, main
from workqueue.compiler import example

pytestmark = pytest.mark.broker  # it takes its time
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, so that nothing of it stays here."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    for name in names:
        if (ROOT / name).is_file() and not name.startswith((".venv", ".broker", ".bench")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(build, check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


def run(installed: Path, *arguments: str, cwd: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m workqueue`, as it is installed; `without` names a module that can't be imported."""
    start = f"import sys; sys.modules[{without!r}] = None; " if without else "import sys; "
    code = f"{start}from workqueue.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def project(installed: Path, tmp_path: Path) -> Path:
    done = run(installed, "init", "mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "mine"


@pytest.mark.timeout(400)
def test_what_init_lays_down_passes_its_own_check(installed: Path, project: Path) -> None:
    (project / ".venv").symlink_to(Path(sys.prefix))  # what requirements.txt has, but for the package
    for path in project.rglob("*"):  # nothing is newer than what was installed, or it would be installed there anew
        os.utime(path, (1, 1), follow_symlinks=False)
    done = subprocess.run(
        ["make", "check", "ARGS=-k foreign"], cwd=project, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert not (project / "workqueue").exists()
    assert "installing" not in done.stderr


def test_the_project_has_the_wheel_it_depends_on_and_the_versions_that_were_tested(wheel: Path, project: Path) -> None:
    assert (project / "vendor" / wheel.name).read_bytes() == wheel.read_bytes()
    lines = (project / "requirements.txt").read_text().splitlines()
    assert f"./vendor/{wheel.name}[cli,dev,generate,metrics,postgres,tracing]" in lines
    assert "-c constraints.txt" in lines
    assert any("install from this one" in line for line in lines)
    assert (project / "constraints.txt").read_text() == (ROOT / "requirements.txt").read_text()
    assert "[" not in "".join(line.partition("#")[0] for line in (project / "constraints.txt").read_text().splitlines())


def test_a_project_is_what_the_example_is(installed: Path, project: Path) -> None:
    for name in ("main-worker.py", "main-producer.py", "test_workqueue.py", "Makefile", "spec/worker.asyncapi.yaml"):
        assert (project / name).read_bytes() == (ROOT / name).read_bytes()
    verified = run(installed, "generate", "--check", cwd=project)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert (project / "README.md").read_text().startswith("# mine\n")


def test_what_needs_an_extra_that_is_not_installed_is_one_line_and_exit_2(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "generate", cwd=tmp_path, without="yaml")
    said = "workqueue generate: needs yaml, which is not installed; install asyncapi-workqueue[generate]\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_the_help_of_a_command_needs_no_extra(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "generate", "--help", cwd=tmp_path, without="yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--check" in done.stdout


def test_the_names_of_the_package_need_no_extra(installed: Path, tmp_path: Path) -> None:
    generator = ("yaml", "typer", "black", "jinja2", "datamodel_code_generator")
    extras = ("rich", "psycopg", "prometheus_client", "opentelemetry", "pytest", *generator)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import workqueue; "
        "[getattr(workqueue, name) for name in workqueue.__all__]; print(workqueue.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(installed))


def test_the_demo_outside_of_a_project_is_one_line_and_exit_2(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "demo: this is no project's folder; go to one, or make one: workqueue init FOLDER\n"


@pytest.mark.parametrize("name", ["with a blank", "ümlaut", "inv\udcff", "nested/below/here"])
def test_a_project_may_lie_anywhere_and_what_is_printed_can_be_pasted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    folder = str(tmp_path / name).encode("utf-8", "backslashreplace").decode()
    assert f"next: cd {shlex.quote(folder)} && make" in said
    assert sorted(path.name for path in (tmp_path / name).parent.glob(".init-*")) == []
    assert (tmp_path / name / "requirements.txt").exists()


def test_what_is_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(init.shutil, "copyfile", interrupt)  # type: ignore[attr-defined]
    assert main(["init", str(tmp_path / "mine")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["", "empty", "not-a.whl", "other-1.0-py3-none-any.whl", "https://x/y z.whl"])
def test_what_can_not_be_installed_is_no_source(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("not-a.whl", "other-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert main(["init", "mine", "--from", source]) == 2
    assert capsys.readouterr().err.startswith(f"workqueue init: --from {source}: is no wheel of asyncapi-workqueue")
    assert not (tmp_path / "mine").exists()


# --- where it came from -----------------------------------------------------------------------------------------------


def came_from(monkeypatch: pytest.MonkeyPatch, folder: Path, **origin: object) -> None:
    """The package was installed from there, as pip notes it; from an index if nothing is given."""
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {init.NAME}\nVersion: 0.1.0\n")
    if origin:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(init, "distribution", lambda name: Distribution.at(folder))
    monkeypatch.setattr(example, "IS_CHECKOUT", False)


def test_a_project_is_pinned_to_the_repositorys_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    came_from(
        monkeypatch,
        tmp_path / "x.dist-info",
        url="https://example.com/queue",
        vcs_info={"vcs": "git", "commit_id": "c0"},
    )
    assert init.source(None).requirement == (
        "asyncapi-workqueue[cli,dev,generate,metrics,postgres,tracing] @ git+https://example.com/queue@c0"
    )


def test_a_project_is_pinned_to_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    came_from(monkeypatch, tmp_path / "x.dist-info", url="file:///a%20b/queue", dir_info={"editable": True})
    assert init.source(None).requirement.endswith("] @ file:///a%20b/queue")


def test_a_wheel_from_elsewhere_is_pinned_by_its_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = "https://example.com/queue-0.1-py3-none-any.whl"
    came_from(monkeypatch, tmp_path / "x.dist-info", url=url, archive_info={"hashes": {"sha256": "ab"}})
    assert init.source(None).requirement.endswith(f"] @ {url}#sha256=ab")


@pytest.mark.parametrize("state", ["gone", "another"])
def test_a_wheel_that_is_gone_or_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    file = tmp_path / "queue-0.1-py3-none-any.whl"
    if state == "another":
        file.write_bytes(b"another")
    came_from(monkeypatch, tmp_path / "x.dist-info", url=file.as_uri(), archive_info={"hashes": {"sha256": "ab"}})
    assert main(["init", str(tmp_path / "mine")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("workqueue init: ")
    assert str(file) in line
    assert "--from" in line
    assert not (tmp_path / "mine").exists()


def test_a_package_of_that_name_from_an_index_is_no_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    came_from(monkeypatch, tmp_path / "x.dist-info")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "name what the project is to depend on with --from" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "mine"), "--from", "git+https://example.com/queue@v1"]) == 0
    assert "] @ git+https://example.com/queue@v1\n" in (tmp_path / "mine" / "requirements.txt").read_text()


def test_a_checkout_that_is_run_in_place_is_named_as_a_folder_whatever_else_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    came_from(
        monkeypatch,
        tmp_path / "x.dist-info",
        url="https://example.com/queue",
        vcs_info={"vcs": "git", "commit_id": "c0"},
    )
    monkeypatch.undo()
    assert example.FOLDER == ROOT
    assert init.source(None).requirement == f"{init.NAME}[{init.EXTRAS}] @ {ROOT.as_uri()}"


@pytest.mark.parametrize(("name", "reason"), [("full", "is not empty"), ("file", "is no folder")])
def test_nothing_that_is_there_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "work").write_text("of weeks")
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / name)]) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "full" / "work").read_text() == "of weeks"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
