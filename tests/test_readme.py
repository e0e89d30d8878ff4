"""Both READMEs say the same, what they name exists, and their commands run.

Their figures come from result files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

import predict
from scripts import latency_tables, loss, report, run_spnas, to_timm
from search import find_method
from src.arch.architecture import load_architecture, shipped_architectures
from src.arch.cost import network_cost
from src.cli import parse_config
from src.config import EvalConfig, ExportConfig, ProfileConfig, TrainConfig
from tests.conftest import ROOT, assert_nothing_deprecated

ENGLISH, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md")
)
GUIDE, ASCEND, REPORT = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("guide.md", "ascend.md", "report.md")
)

CONFIGS = {
    "train.py": TrainConfig,
    "eval.py": EvalConfig,
    "export.py": ExportConfig,
    "scripts/profile_latency.py": ProfileConfig,
}
PARSERS = {
    "predict.py": predict.parse_arguments,
    "scripts/run_spnas.py": run_spnas.parse_arguments,
    "scripts/loss.py": loss.parse_arguments,
    "scripts/latency_tables.py": latency_tables.parse_arguments,
    "scripts/to_timm.py": to_timm.parse_arguments,
    "scripts/report.py": report.parse_arguments,
}


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def test_both_languages_have_the_same_commands_figures_and_sections():
    assert commands(ENGLISH) == commands(CHINESE)
    numbers = [re.findall(r"\d+\.\d+(?:e-\d+)?", text) for text in (ENGLISH, CHINESE)]
    assert sorted(numbers[0]) == sorted(numbers[1])
    for pattern in (r"^#+ ", r"^\| ", r"^- "):
        assert len(re.findall(pattern, ENGLISH, re.M)) == len(re.findall(pattern, CHINESE, re.M)), (
            pattern
        )
    assert re.findall(r"`[a-z_]+(?:\.py|/[\w.]*|_\w+)`", ENGLISH) == re.findall(
        r"`[a-z_]+(?:\.py|/[\w.]*|_\w+)`", CHINESE
    )


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "cn"])
def test_links_and_files_exist(text):
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    tree = re.search(r"```text\n(.*?)```", text, re.S)[1]
    names = [
        name
        for line in tree.splitlines()
        for name in re.findall(r"[\w.]+", line.split("   ")[0 if line[0] == "├" else 1])
    ]
    assert len(names) > 25
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in ("", "src", "scripts")), name


def test_the_page_of_the_architecture_names_all_rooms_and_what_exists():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for room in (ROOT / "src").iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"`src/{room.name}`" in text, room.name
    names = re.findall(r"`([\w/]+/\w+\.(?:py|cc))`", text)
    assert len(names) > 25
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in ("", "src")), name


def test_figures_come_from_the_result_files():
    for folder in ("cifar10", "imagenet_mini"):
        (row,) = json.loads((ROOT / "docs/results" / folder / "eval.json").read_text())["results"]
        for text in (
            ENGLISH,
            CHINESE,
            (ROOT / "docs/results/README.md").read_text(encoding="utf-8"),
        ):
            assert f"{row['top1']:.2f} % | {row['top5']:.2f} %" in text
    for name in shipped_architectures():
        cost = network_cost(load_architecture(name))
        assert re.search(
            rf"`{name}` \| \w+ \| {cost.params / 1e6:.2f} \| {cost.macs / 1e6:.1f} ", ENGLISH
        ), name


@pytest.mark.parametrize(
    "text", [ENGLISH, GUIDE, ASCEND, REPORT], ids=["readme", "guide", "ascend", "report"]
)
def test_flags_of_all_commands_are_known(text):
    for command in commands(text):
        words = shlex.split(command)
        if words[0] == "python" and words[1] in PARSERS:
            PARSERS[words[1]](words[2:])
        elif words[0] == "python" and words[1] != "-c":
            kind = find_method(words[2:]) if words[1] == "search.py" else CONFIGS[words[1]]
            parse_config(kind, words[2:], "")


def test_the_guide_runs_its_own_commands():
    script = ["bash", str(ROOT / "scripts/guide.sh"), "--list"]
    listed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed == commands(GUIDE) and len(listed) > 6
    for name in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / name).is_file(), name


def cpp_can_be_built() -> bool:
    build = ["bash", str(ROOT / "ascend310_infer/build.sh"), "--missing"]
    return not subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_commands_from_training_to_inference_run(tiny_arch, tmp_path):
    """As written, in an empty folder; training is cut short by two more flags.

    Beside that, ``predict.py``; and no program calls what MindSpore is going to drop.
    """
    chosen = [command for command in commands(ENGLISH) if "runs/digits" in command]
    assert len(chosen) == 7
    chosen = chosen if cpp_can_be_built() else chosen[:5]
    chosen.append("python predict.py runs/digits/ckpt_0 data/digits/val/7")
    # Without .venv the shell scripts take the python of PATH, as they do for those who brought
    # their own.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    for command in chosen:
        words = shlex.split(command)
        settings = dict(word.split("=") for word in words if re.match(r"[A-Z_]+=", word))
        words = [sys.executable if word == "python" else word for word in words[len(settings) :]]
        words = [
            str(ROOT / word) if word.endswith((".py", ".sh", "/main")) else word for word in words
        ]
        if "train.py" in command:
            words += ["--epoch_size", "1", "--arch", str(tiny_arch)]
        run = subprocess.run(
            words,
            cwd=tmp_path,
            timeout=300,
            env={**os.environ, **settings, "PATH": path, "GLOG_v": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert_nothing_deprecated(run)
    assert (tmp_path / "runs/digits/ckpt_0/curves.png").is_file()


@pytest.mark.slow
def test_quickstart_runs(tmp_path):
    """As in the README; training and measurement are cut short, the rest is as users have it."""
    flags = {
        "TRAIN_FLAGS": "--epoch_size 2 --val_while_train false",
        "PROFILE_FLAGS": "--max_rounds 5",
        "SERVE_FLAGS": "--evaluations 10 --calibration_images 100",
    }
    # A test installs no Debian packages, which run_tests.sh did or was told not to do.
    script = [str(ROOT / "scripts/quickstart.sh"), "--no-system-packages"]
    run = subprocess.run(
        ["bash", *script, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **flags},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    networks = sorted((tmp_path / "run/served").glob("target_*"))
    assert len(networks) == 2
    head, *rows, page = run.stdout.splitlines()[-4:]
    assert page.startswith(f"{tmp_path}/run/report.html: run, run/served, run/table.json; ")
    assert head.split("  ")[0] == "target"
    for network, shown in zip(networks, rows, strict=True):
        (row,) = json.loads((network / "eval.json").read_text())["results"]
        assert row["images"] == 360
        assert row["top1"] > 20  # a tenth would be chance
        target, predicted, measured, *_ = map(float, shown.split()[:4])
        assert 0 < predicted <= target and measured > 0
        assert shown.count(f"{row['top1']:.2f} %") == 1 + cpp_can_be_built()
        if cpp_can_be_built():
            top1, top5 = (f"{row[name] / 100:.5f}" for name in ("top1", "top5"))
            line = f"Total data: 360, top1 accuracy: {top1}, top5 accuracy: {top5}.\n"
            assert (network / "acc.log").read_text() == line
