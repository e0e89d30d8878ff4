"""Documents: what they name exists, their links lead somewhere, their commands run.

Both READMEs say the same, and their figures are those of the pages and of the result files.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search import find_method
from src.arch.architecture import load_architecture, shipped_architectures
from src.arch.cost import network_cost
from src.arch.space import load_space
from src.cli import parse_config
from src.config import (
    EvalConfig,
    ExportConfig,
    PackConfig,
    ProfileConfig,
    SubnetConfig,
    TrainConfig,
)
from tests.conftest import ROOT, Program, assert_nothing_deprecated

DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "weights/README.md"])
}
ENGLISH, CHINESE = PAGES["README.md"], PAGES["README_CN.md"]

CONFIGS = {
    "train.py": TrainConfig,
    "eval.py": EvalConfig,
    "export.py": ExportConfig,
    "scripts/profile_latency.py": ProfileConfig,
    "scripts/evaluate_subnets.py": SubnetConfig,
    "scripts/pack_supernet.py": PackConfig,
}


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^ *```bash\n(.*?)```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.strip()]


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_both_languages_have_the_same_commands_figures_and_sections():
    assert commands(ENGLISH) == commands(CHINESE)
    for pattern in (r"\d+\.\d+(?:e-\d+)?", r"\]\(docs/[^)]+\)"):
        found = [sorted(re.findall(pattern, text)) for text in (ENGLISH, CHINESE)]
        assert found[0] == found[1]
    for pattern in (r"^#+ ", r"^\| "):
        assert len(re.findall(pattern, ENGLISH, re.M)) == len(re.findall(pattern, CHINESE, re.M)), (
            pattern
        )
    names = r"`[a-z_]+(?:\.py|/[\w.]*|_\w+)`"
    assert re.findall(names, ENGLISH) == re.findall(names, CHINESE)


def test_readme_is_short_and_has_the_sections_of_the_model_zoo():
    assert len(ENGLISH.splitlines()) <= 160
    headings = re.findall(r"^## (.+)$", ENGLISH, re.M)
    assert headings == [
        "Single-Path NAS description",
        *("Dataset", "Features", "Environment requirements", "Quick start", "Script description"),
        *("Script parameters", "Training", "Distributed training", "Evaluation", "Export"),
        *("Inference", "Performance", "Description of random situation", "Limits"),
    ]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_pages_headings_and_files(name):
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(PAGES[name])):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), target
        if DOCS in page.parents:
            assert DOCS in place.parents, f"{target} is no part of the site"
        if anchor:
            assert anchor in anchors(PAGES[place.relative_to(ROOT).as_posix()]), (target, anchor)


def test_every_page_is_in_the_navigation_and_every_picture_on_a_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [entry for group in site["nav"] for part in group.values() for entry in part]
    listed = [page for entry in entries for page in entry.values()]
    assert sorted(listed) == sorted(name[5:] for name in PAGES if name.startswith("docs/"))
    shown = {
        (ROOT / name).parent / target
        for name, text in PAGES.items()
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    }
    records = DOCS / "results"  # keep what the runs wrote
    pictures = {path for path in DOCS.rglob("*.png") if records not in path.parents}
    assert pictures <= shown


@pytest.mark.skipif(
    not shutil.which("zensical", path=Path(sys.executable).parent), reason="needs the extra docs"
)
def test_site_is_built_without_warnings(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    words = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    build = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    assert "warning" not in (build.stdout + build.stderr).lower()
    assert (tmp_path / "site/search.json").is_file()


def test_the_page_of_programs_names_all_of_them_and_what_exists():
    tree = re.search(r"```text\n(.*?)```", PAGES["docs/scripts.md"], re.S)
    assert tree
    names = [
        name
        for line in tree[1].splitlines()
        for name in re.findall(r"[\w.]+", line.split("   ")[0 if line[0] == "├" else 1])
    ]
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in ("", "src", "scripts")), name
    programs = {path.name for path in (*ROOT.glob("*.py"), *ROOT.glob("scripts/*.*"))}
    assert len(programs) > 25 and programs <= set(names)


def test_the_page_of_the_architecture_names_all_rooms_and_what_exists():
    text = PAGES["docs/architecture.md"]
    for room in (ROOT / "src").iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"`src/{room.name}`" in text, room.name
    names = re.findall(r"`([\w/]+/\w+\.(?:py|cc))`", text)
    assert len(names) > 25
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in ("", "src")), name


def test_figures_of_the_readme_are_those_of_the_page_that_a_row_names():
    results = PAGES["docs/results/README.md"]
    rows = re.findall(r"^\| (.+) \| \[.+\]\((docs/.+)\) \|$", ENGLISH, re.M)
    assert len(rows) > 8
    for row, page in rows:
        for number in re.findall(r"\d+\.\d+(?:e-\d+)?", row):
            alone = rf"(?<![\d.]){re.escape(number)}(?!\d)"  # not the end of another one
            assert re.search(alone, PAGES[page] + results), (number, page)
    for number in re.findall(r"\d+\.\d+ %", ENGLISH.partition("## Performance")[2]):
        assert number in results


def test_figures_come_from_the_result_files():
    for folder in ("cifar10", "cifar10_smallest", "imagenet_mini"):
        (row,) = json.loads((DOCS / "results" / folder / "eval.json").read_text())["results"]
        assert f"{row['top1']:.2f} % | {row['top5']:.2f} %" in PAGES["docs/results/README.md"]
    for name in shipped_architectures():
        cost = network_cost(load_architecture(name))
        assert re.search(
            rf"`{name}` \| \w+ \| {cost.params / 1e6:.2f} \| {cost.macs / 1e6:.1f} ",
            PAGES["docs/architectures.md"],
        ), name


def check_flags(program: str, flags: list[str]) -> None:
    """Refuse flags that a program does not know."""
    if program in CONFIGS or program == "search.py":
        parse_config(find_method(flags) if program == "search.py" else CONFIGS[program], flags, "")
        return
    text = (ROOT / program).read_text(encoding="utf-8")
    if "def parse_arguments" in text:
        module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
        module.parse_arguments(flags)
        return
    text += (ROOT / "benchmarks/contenders.py").read_text(encoding="utf-8")  # flags of many
    for flag in flags:
        assert not flag.startswith("--") or f'"{flag}"' in text, f"{program} {flag}"


@pytest.mark.parametrize("name", PAGES)
def test_programs_exist_and_know_the_flags_of_all_commands(name):
    printed = re.findall(r"^\$ (.+)$", PAGES[name], re.M)
    for command in commands(PAGES[name]) + printed:
        words = shlex.split(command, comments=True)
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if not words or words[0] not in ("python", "bash") or words[1].startswith("-"):
            continue
        assert (ROOT / words[1]).is_file(), command
        if words[0] == "python" and "$" not in command:
            check_flags(words[1], words[2:])


def test_the_guide_runs_its_own_commands():
    script = ["bash", str(ROOT / "scripts/guide.sh"), "--list"]
    listed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed == commands(PAGES["docs/guide.md"]) and len(listed) > 6


def cpp_can_be_built() -> bool:
    build = ["bash", str(ROOT / "ascend310_infer/build.sh"), "--missing"]
    return not subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_commands_from_training_to_inference_run(
    tiny_arch: Path, call_program: Program, tmp_path: Path
):
    """As written on the pages, in one folder; training is cut short by further flags.

    Shell scripts (run_eval.sh is eval.py), train.py, export.py and predict.py run in processes of
    their own, which warn of what MindSpore is going to drop; eval.py and to_timm.py in this one.
    """
    pages = [PAGES[f"docs/{name}.md"] for name in ("training", "evaluation", "export", "inference")]
    chosen = [line for page in pages for line in commands(page) if "runs/digits" in line]
    assert len(chosen) == 8
    chosen = chosen if cpp_can_be_built() else chosen[:6]
    chosen.append("python predict.py runs/digits/ckpt_0 data/digits/val/7")
    short = ["--epoch_size", "1", "--train_images", "320", "--arch", str(tiny_arch)]
    # Without .venv the shell scripts take the python of PATH, as they do for those who brought
    # their own.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    for command in chosen:
        words = shlex.split(command)
        settings = dict(word.split("=") for word in words if re.match(r"[A-Z_]+=", word))
        first, program, *flags = words[len(settings) :]
        warns = first != "python" or program in ("train.py", "export.py", "predict.py")
        if not warns:
            run = call_program(program, *flags)
        else:
            words = [first, program, *flags, *(short if program == "train.py" else [])]
            run = subprocess.run(
                [
                    str(ROOT / word) if word.endswith((".py", ".sh", "/main")) else word
                    for word in words
                ],
                cwd=tmp_path,
                timeout=300,
                env={**os.environ, **settings, "PATH": path, "GLOG_v": "2"},
                capture_output=True,
                text=True,
                check=False,
            )
        assert run.returncode == 0, run.stderr
        if warns:
            assert_nothing_deprecated(run)
    assert (tmp_path / "runs/digits/ckpt_0/curves.png").is_file()


@pytest.mark.slow
def test_quickstart_runs(tmp_path):
    """As in the README, with half the layers, and a shorter training and measurement."""
    space = load_space("nas_bench_macro").to_dict()
    space |= {"name": "half", "layers": space["layers"][:4]}
    file = tmp_path / "half.json"
    file.write_text(json.dumps(space))
    flags = {
        "TRAIN_FLAGS": f"--space {file} --epoch_size 3 --subnets random --val_while_train false",
        "PROFILE_FLAGS": f"--space {file} --max_rounds 5",
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
