"""What the launcher starts, what it shows, and what it says of a job that failed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from src.devices import launcher
from src.devices.job import Job, Launch, LogReader
from src.devices.ranks import Ranks
from src.errors import UserError
from tests.conftest import ROOT
from tests.devices.test_rank_table import table

# What MindSpore writes when a process ends.
RUNTIME = (
    "[INFO] DISTRIBUTED(14672,7f05aadf06c0,python3):2026-01-01-00:00:00.936.765 "
    "[mindspore/ccsrc/cluster/rpc/core/communicator/tcp_client.cc:269] Start] "
    "Event base dispatch success!\n"
)


@pytest.fixture
def second_server(monkeypatch):
    monkeypatch.setattr(launcher, "own_addresses", lambda: {"10.0.0.2", "127.0.0.1"})
    for name in ("DEVICE_TARGET", "MS_NODE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def test_what_a_table_starts(second_server, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(json.dumps(table()))
    launch, foreground = launcher.parse(
        [str(file), "imagenet", "--data_path", "/data", "--log_dir", str(tmp_path / "logs")]
    )
    assert not foreground
    command, environment = launch.command(), launch.environment()
    assert {
        "--worker_num=8",
        "--local_worker_num=4",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--master_port=8118",
        "--join=True",
        f"--log_dir={tmp_path / 'logs'}",
    } <= set(command)
    assert command[command.index("python3") :] == [
        "python3",
        str(ROOT / "train.py"),
        "--dataset_name",
        "imagenet",
        "--device_target",
        "Ascend",
        "--data_path",
        "/data",
    ]
    assert environment["ASCEND_RT_VISIBLE_DEVICES"] == "4,5,6,7"
    assert environment["MS_NODE_TIMEOUT"] == "120"


def test_what_a_number_starts(second_server, monkeypatch):
    monkeypatch.setenv("DEVICE_TARGET", "CPU")
    launch, foreground = launcher.parse(
        ["--device_num", "2", "--program", "search.py", "digits", "--foreground", "--target", "60"]
    )
    assert foreground and "ASCEND_RT_VISIBLE_DEVICES" not in launch.environment()
    assert launch.program == (
        str(ROOT / "search.py"),
        "--dataset_name",
        "digits",
        "--device_target",
        "CPU",
        "--target",
        "60",
    )
    assert {"--worker_num=2", "--local_worker_num=2", "--node_rank=0"} <= set(launch.command())
    # It takes its device from the environment.
    launch, _ = launcher.parse(
        ["--device_num", "2", "--program", "scripts/run_spnas.py", "cifar10", "--epochs", "3"]
    )
    one_shot = str(ROOT / "scripts/run_spnas.py")
    again, _ = launcher.parse(["--device_num", "2", "--program", one_shot, "cifar10"])
    assert again.program == (one_shot, "--dataset", "cifar10")
    assert launch.program == (one_shot, "--dataset", "cifar10", "--epochs", "3")


@pytest.mark.parametrize(
    "words, message",
    [
        (["imagenet"], "give the devices"),
        (["t.json", "imagenet", "--device_num", "2"], "give either a rank table or --device_num"),
        (["--device_num", "2", "imagenette"], "data set is ''"),
        (["--device_num", "2"], "data set is ''"),
        (["t.json", "imagenet"], "t.json: no such rank table"),
        (["--device_num", "0", "digits"], "device_num is 0"),
        (["--device_num", "2", "digits", "--program", "trian.py"], "program is 'trian.py'"),
    ],
)
def test_launcher_refuses(second_server, words, message):
    with pytest.raises(UserError) as error:
        launcher.parse(words)
    assert message in str(error.value)


def test_programs_import_the_src_of_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment = launch_of(tmp_path).environment()
    assert environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}elsewhere"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    monkeypatch.delenv("PYTHONPATH")
    assert launch_of(tmp_path).environment()["PYTHONPATH"] == str(ROOT)


def test_shell_reports_a_wrong_table_at_once(tmp_path):
    """Also in the background: nothing is started."""
    (tmp_path / "t.json").write_text(json.dumps(table()))
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", str(ROOT / "scripts/run_train.sh"), "t.json", "imagenet"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert (
        run.returncode == 2
        and "t.json: this machine" in run.stderr
        and len(run.stderr.strip().splitlines()) == 1
    )
    assert [file.name for file in tmp_path.iterdir()] == ["t.json"]


# Jobs, with a stand-in for msrun.


def launch_of(folder: Path) -> Launch:
    return Launch(("program.py",), 2, 2, 0, "127.0.0.1", 0, None, folder)


@pytest.fixture
def own_handlers():
    """A job leaves its signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run_job(tmp_path, monkeypatch, own_handlers):
    """Runs a job whose msrun writes the given logs; returns exit code and output."""

    def run(msrun: str, worker: str, code: int) -> tuple[int, str]:
        script = (
            f"from pathlib import Path; Path({str(tmp_path / 'worker_0.log')!r})"
            f".write_text({worker!r}); print({msrun!r}); raise SystemExit({code})"
        )
        command = [sys.executable, "-c", script]
        monkeypatch.setattr(Launch, "command", lambda _launch: command)
        output = io.StringIO()
        return Job(launch_of(tmp_path)).wait(output), output.getvalue()

    return run


def test_a_job_shows_its_first_process_without_lines_of_the_runtime(run_job, tmp_path):
    log = f"epoch 1/1: loss 2.3\n{RUNTIME}[WARNING] ME(1,2,python3): look\nlast words"
    code, output = run_job("fine", log, 0)
    assert code == 0
    assert output == "epoch 1/1: loss 2.3\n[WARNING] ME(1,2,python3): look\nlast words"
    assert RUNTIME in (tmp_path / "worker_0.log").read_text()


@pytest.mark.parametrize(
    "code, told, expected",
    [(2, "ended with exit code 2", 2), (-9, "was ended by SIGKILL", 1)],
)
def test_a_failed_job_names_the_log(run_job, tmp_path, capsys, code, told, expected):
    line = f"[ERROR] ME: Worker process 99 exit with exception. Error code: {code}."
    assert run_job(line, "", 1)[0] == expected
    error = capsys.readouterr().err
    assert f"error: process 99 {told} and the job with it; see {tmp_path};" in error
    assert error.count("\n") == 1


def test_a_failure_of_msrun_itself_names_its_log(run_job, tmp_path, capsys):
    assert run_job("no such option", "", 1)[0] == 1
    assert f"msrun failed; see {tmp_path / 'msrun.log'}" in capsys.readouterr().err


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_signal_before_any_process_is_known_ends_all(tmp_path, monkeypatch, own_handlers):
    """The child has a session of its own, as a process of a job has."""
    file = tmp_path / "child"
    script = (
        "import subprocess, sys; from pathlib import Path; child = subprocess.Popen("
        "[sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
        f"scratch = Path({str(tmp_path / 'scratch')!r}); scratch.write_text(str(child.pid)); "
        f"scratch.rename({str(file)!r}); child.wait()"
    )
    monkeypatch.setattr(Launch, "command", lambda _launch: [sys.executable, "-c", script])
    job = Job(launch_of(tmp_path))
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child = psutil.Process(int(file.read_text()))
    os.kill(os.getpid(), signal.SIGTERM)
    assert job.wait(io.StringIO()) == 128 + signal.SIGTERM
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def test_a_signal_while_msrun_is_started_ends_the_job(tmp_path, monkeypatch, own_handlers):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(Launch, "command", lambda _launch: command)

    def environment(_launch):
        os.kill(os.getpid(), signal.SIGTERM)
        return dict(os.environ)

    monkeypatch.setattr(Launch, "environment", environment)
    assert Job(launch_of(tmp_path)).wait(io.StringIO()) == 128 + signal.SIGTERM


def test_a_failure_without_a_text_is_a_failure():
    work: Future = Future()
    work.set_exception(AssertionError())
    assert Ranks._progress(work) == (True, "AssertionError")


def test_a_growing_log_is_copied_by_whole_lines(tmp_path):
    output, file = io.StringIO(), tmp_path / "worker_0.log"
    reader = LogReader(file)
    reader.copy(output)  # there is no file yet
    for part, shown in (
        ("first\nsec", "first\n"),
        ("ond\n" + RUNTIME[:20], "first\nsecond\n"),
        (RUNTIME[20:], "first\nsecond\n"),
        ("\u00e9nd", "first\nsecond\n"),
    ):
        with open(file, "a", encoding="utf-8") as log:
            log.write(part)
        reader.copy(output)
        assert output.getvalue() == shown
    reader.copy(output, ended=True)
    assert output.getvalue() == "first\nsecond\n\u00e9nd"
