"""What the machine says of itself for the record of a measurement: its processor and its clock."""

from __future__ import annotations

import platform
import re
from datetime import datetime, timezone
from pathlib import Path

# Vector extensions that runtimes choose their kernels by: of x86, then of ARM.
SIMD = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")


def processor_name() -> str:
    """For example "AMD EPYC", the processor's own name, or else its kind."""
    return _cpu_value("model name") or platform.machine()


def simd_extensions() -> list[str]:
    """Those of ``SIMD`` that the processor has."""
    flags = _cpu_value("flags|Features").split()
    return [name for name in SIMD if name in flags]


def _cpu_value(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty where there is none.

    Args:
        key: a regular expression.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^(?:{key})\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def utc_now() -> str:
    """Date and time, for example 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime(TIME_FORMAT)


def days_since(date: str) -> int:
    """Whole days since a date of ``utc_now``."""
    then = datetime.strptime(date, TIME_FORMAT).replace(tzinfo=timezone.utc)
    return (datetime.now(timezone.utc) - then).days
