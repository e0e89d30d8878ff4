"""Set-up: pins stand in one place with reasons; what the scripts install, say and refuse."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from src import result_files
from src.checkpoint import format as checkpoint_format
from src.checkpoint import packed
from src.deployment import description
from src.latency import runtimes
from tests.conftest import ROOT

SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("scripts/*.sh"), ROOT / "ascend310_infer/build.sh", ROOT / ".ci/run")
)
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
NO_COMPILER = {"CXX": "no-such-compiler"}  # so that one package is missing on every machine


def pins(text: str) -> dict[str, tuple[str, str]]:
    """Version and reason of each pin: ``name==1.2.3  # reason``, in pyproject.toml with quotes."""
    found = re.findall(r'^ *"?([\w-]+)==([\w.]+)"?,? +# (.+)$', text, re.M)
    return {name: (version, reason) for name, version, reason in found}


def extra(name: str) -> str:
    match = re.search(rf"^{name} = \[\n(.*?)^\]", PROJECT, re.M | re.S)
    assert match
    return match[1]


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run(script: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """What the set-up reads, copied, so that it writes nothing into the project."""
    shutil.copytree(ROOT / "scripts", tmp_path / "project/scripts")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    return tmp_path / "project"


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder for the start of PATH: its apt-get and sudo write their words to ``calls``."""
    calls = f'echo "$(basename "$0") $*" >> {tmp_path}/calls'
    write_program(tmp_path / "bin/apt-get", calls)
    write_program(tmp_path / "bin/sudo", f'{calls}\n[ "$*" = "-n true" ] || exec "${{@:2}}"')
    return tmp_path / "bin"


@pytest.fixture
def python(tmp_path) -> Path:
    """A Python that makes environments of itself, and writes calls of pip and pytest down."""
    return write_program(
        tmp_path / "python",
        f"""case "$1 $2" in
        "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
        "-m pip" | "-m pytest") echo "$*" >> {tmp_path}/installed ;;
        esac""",
    )


def test_every_requirement_is_pinned_and_has_its_reason():
    texts = [
        REQUIREMENTS,
        *map(extra, ("runtimes", "more_runtimes", "int8", "test", "dev", "docs")),
    ]
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        lines = [line for line in lines if "spnas[" not in line]  # other extras of this project
        assert len(pins(text)) == len(lines) > 0
        assert all(len(reason) > 4 for _, reason in pins(text).values())
    names = [name for text in texts for name in pins(text)]
    assert len(set(names)) == len(names)
    assert not list(ROOT.glob("requirements-*.txt"))


def test_what_src_imports_is_required_and_what_is_required_is_imported():
    imported = set()
    for file in [*ROOT.glob("src/**/*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    provided = {
        name: {file.parts[0].removesuffix(".py") for file in importlib.metadata.files(name) or ()}
        for name in pins(REQUIREMENTS)
    }
    # Imported only where they are installed: of the extras int8 and more_runtimes.
    provided["onnxruntime"] |= {"onnx", "ncnn", "MNN", "_tools"}
    provided["pydantic"] |= {"pydantic_core", "typing_extensions"}  # which it needs itself
    assert imported - sys.stdlib_module_names - {"src"} <= set().union(*provided.values())
    assert [name for name, modules in provided.items() if not modules & imported] == []


def test_hooks_call_the_pinned_tools_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    tools = {hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]}
    assert tools == {f".venv/bin/{name}" for name in ("ruff", "mypy", "clang-format")}
    assert {Path(tool).name for tool in tools} < set(pins(extra("dev")))


def test_versions_of_python_and_of_the_project_agree():
    assert 'requires-python = ">=3.10,<3.13"' in PROJECT
    assert 'target-version = "py310"' in PROJECT and 'python_version = "3.10"' in PROJECT
    setup = (ROOT / "scripts/common.sh").read_text(encoding="utf-8")
    assert "(3, 10) <= sys.version_info[:2] <= (3, 12)" in setup
    match = re.search(r'^version = "(.+)"', PROJECT, re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert match and re.findall(r"^## \[(.+?)\]", changes, re.M)[0] == match[1]


def test_changelog_has_the_versions_of_the_formats():
    formats = {
        description.FORMAT: description.VERSION,
        checkpoint_format.META: checkpoint_format.VERSION,
        packed.FORMAT: packed.VERSION,
        result_files.ACCURACIES_FORMAT: result_files.ACCURACIES_VERSION,
        runtimes.COMPARISON_FORMAT: runtimes.COMPARISON_VERSION,
    }
    for file in ("architectures/spnas_pixel1", "spaces/imagenet", "latency_tables/pixel1"):
        data = json.loads((ROOT / f"src/arch/{file}.json").read_text(encoding="utf-8"))
        formats[data["format"]] = data["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.+\| `?([\w-]*)`? \| (\d+) \| [\d.]+ \|$", changes, re.M)
    assert {name: int(version) for name, version in rows} == formats


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", script], cwd=ROOT, check=True)


def test_ci_runs_the_checks_and_then_the_test_command_of_the_readme():
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert lines[-1] == "exec bash scripts/run_tests.sh" and "pre-commit run" in lines[-2]
    assert "apt-get" not in "".join(lines)
    assert "\nbash scripts/run_tests.sh\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_build_names_missing_packages():
    build = run(ROOT / "ascend310_infer/build.sh", "--missing", **NO_COMPILER)
    assert build.returncode == 0 and not build.stderr
    assert "g++" in build.stdout.split()
    assert all(re.fullmatch(r"[a-z0-9+.-]+", name) for name in build.stdout.split())
    refused = run(ROOT / "ascend310_infer/build.sh", **NO_COMPILER)
    assert refused.returncode == 2 and "packages are missing" in refused.stderr


def test_packages_are_installed_by_root(folder, programs, tmp_path):
    write_program(programs / "id", "echo 0")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    process = run(
        folder / "scripts/system_packages.sh", "--install", "cpp", PATH=path, **NO_COMPILER
    )
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.startswith("apt-get") and update.endswith(" update")
    assert re.search(r"install -y --no-install-recommends g\+\+", install)
    assert process.stdout.count("installing Debian packages: g++") == 1
    # Nothing was installed in truth, which is noticed.
    assert process.returncode == 1 and "to install them: apt-get install" in process.stderr


def test_packages_are_installed_by_sudo_only_without_a_password(folder, programs, tmp_path):
    write_program(programs / "id", "echo 1000")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    script = folder / "scripts/system_packages.sh"
    run(script, "--install", "cpp", PATH=path, **NO_COMPILER)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "sudo -n true" and sum(call.startswith("apt-get") for call in calls) == 2

    (tmp_path / "calls").unlink()
    write_program(programs / "sudo", "exit 1")
    process = run(script, "--install", "cpp", PATH=path, **NO_COMPILER)
    assert process.returncode == 1 and not (tmp_path / "calls").exists()
    (line,) = process.stderr.splitlines()
    assert "to install them: sudo apt-get install --no-install-recommends g++" in line


def test_failed_installation_says_why_and_names_its_log(folder, programs):
    write_program(programs / "id", "echo 0")
    write_program(
        programs / "apt-get", 'echo "noise"; echo "E: Unable to locate package g++"; exit 100'
    )
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    process = run(
        folder / "scripts/system_packages.sh", "--install", "cpp", PATH=path, **NO_COMPILER
    )
    assert process.returncode == 1 and "noise" not in process.stdout + process.stderr
    assert f"(E: Unable to locate package g++); {folder}/setup.log says more" in process.stderr
    assert "noise" in (folder / "setup.log").read_text()


def test_environment_is_made_once_per_set_of_pins(folder, python, tmp_path):
    script, installed = folder / "scripts/setup_env.sh", tmp_path / "installed"

    def installs(*flags: str) -> list[str]:
        installed.write_text("")
        process = run(script, *flags, PYTHON=str(python))
        assert process.returncode == 0, process.stderr
        return [line.split()[-1] for line in installed.read_text().splitlines()]

    assert installs("test", "dev") == [".[test,dev]"]
    assert installs("test", "dev") == installs("dev") == installs() == []
    with open(folder / "requirements.txt", "a", encoding="utf-8") as file:
        file.write("another==1.0  # reason\n")
    assert installs() == ["."]
    assert installs("test") == [".[test]"]
    folder.rename(tmp_path / "moved")  # an editable install holds the path of the project
    script = tmp_path / "moved/scripts/setup_env.sh"
    assert installs("test") == [".[test]"]


def test_environment_needs_a_suitable_python(folder, python):
    script = folder / "scripts/setup_env.sh"
    process = run(script, PYTHON="false")
    assert process.returncode == 2
    assert (
        process.stderr
        == "setup_env.sh: error: PYTHON is 'false', should be a Python 3.10 to 3.12\n"
    )
    process = run(script, "tests")
    assert process.returncode == 2 and "'tests' is unknown, should be test, dev" in process.stderr
    write_program(folder / ".venv/bin/pip", "")
    write_program(folder / ".venv/bin/python", "exit 1")
    process = run(script, PYTHON=str(python))
    assert process.returncode == 2 and ".venv has an unsuitable Python" in process.stderr


def test_package_of_debians_python_is_named(folder, tmp_path):
    answers = 'case "$2" in *ensurepip*) exit 1 ;; *print*) echo python3.11-venv ;; esac'
    python = write_program(tmp_path / "debian", answers)
    script = folder / "scripts/system_packages.sh"
    assert run(script, "--missing", "python", PYTHON=str(python)).stdout == "python3.11-venv\n"
    write_program(folder / ".venv/bin/pip", "")
    assert run(script, "--missing", "python", PYTHON=str(python)).stdout == "\n"


def test_test_command_passes_flags_on_and_keeps_from_packages(folder, programs, python, tmp_path):
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    process = run(
        folder / "scripts/run_tests.sh",
        *("--no-system-packages", "-m", "not slow", "tests/arch"),
        PATH=path,
        PYTHON=str(python),
        **NO_COMPILER,
    )
    assert process.returncode == 0 and not (tmp_path / "calls").exists()
    assert "packages are missing" in process.stderr
    pytest_call = (tmp_path / "installed").read_text().splitlines()[-1]
    assert pytest_call == "-m pytest -n 2 --dist loadfile -m not slow tests/arch"


@pytest.mark.parametrize(
    "script, flags, reason",
    [
        ("quickstart.sh", ["--no-packages"], "flag '--no-packages' is unknown"),
        ("quickstart.sh", ["runs/a", "runs/b"], "two run folders"),
        ("system_packages.sh", ["--missing", "gpu"], "should be python, cpp or tests"),
        ("system_packages.sh", ["--remove", "cpp"], "should be --missing, --install or --suggest"),
        ("system_packages.sh", [], "usage"),
        ("guide.sh", ["0"], "should be a number from 1 to"),
        ("run_eval.sh", [], "usage"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(script, flags, reason):
    process = run(ROOT / "scripts" / script, *flags)
    (line,) = process.stderr.splitlines()
    assert process.returncode == 2 and line.startswith(f"{script}: error: ") and reason in line
