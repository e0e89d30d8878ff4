"""All runtimes are warmed up alike, those of Python and those of C++."""

from __future__ import annotations

import re

from src.latency.mindspore_runtime import WARM_UP
from tests.conftest import ROOT


def test_cpp_programs_and_python_warm_up_alike():
    source = (ROOT / "ascend310_infer/src/model.cc").read_text(encoding="utf-8")
    assert re.findall(r"kWarmUp = (\d+);", source) == [str(WARM_UP)]
