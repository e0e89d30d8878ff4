r"""Write the rank table of this server, or merge those of several, for scripts/run_train.sh.

    python scripts/hccl_table.py --device_num 8
    python scripts/hccl_table.py --merge hccl_8p_01234567_10.0.0.1.json \
        hccl_8p_01234567_10.0.0.2.json

The first writes ``hccl_8p_01234567_<address>.json`` with the addresses of the devices in
/etc/hccn.conf, the second ``hccl_2s_16p.json``, whose ranks follow the order of the files.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from src.cli import Parser
from src.devices.rank_table import (
    RankTable,
    build_rank_table,
    load_rank_table,
    merge_rank_tables,
)
from src.errors import UserError
from src.files import make_folder, write_text
from src.utils import run_main

log = logging.getLogger(__name__)


def device_range(text: str) -> list[int]:
    """Devices of "8" or of the model zoo's "[0,8)"."""
    match = re.fullmatch(r"(\d+)|\[(\d+),\s*(\d+)\)", text.strip())
    if not match:
        raise UserError(
            f"device_num is '{text}', should be a number such as 8, or a range such as [0,8)"
        )
    devices = range(int(match[1])) if match[1] else range(int(match[2]), int(match[3]))
    if not devices:
        raise UserError(f"device_num is '{text}', should name at least one device")
    return list(devices)


def visible_devices(text: str, positions: Sequence[int]) -> list[int]:
    """Device ids at these positions of a list such as "4,5,6,7"."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words) or positions[-1] >= len(words):
        raise UserError(
            f"visible_devices is '{text}', should be the ids of at least {positions[-1] + 1} "
            "devices with commas between them"
        )
    return [int(words[position]) for position in positions]


def device_addresses(path: Path) -> dict[int, str]:
    """Address of each device, from lines such as ``address_0=192.168.1.6``.

    Empty, with a warning, where there is no such file.
    """
    if not path.is_file():
        log.warning("%s: no such file; the devices get no addresses", path)
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error}); hccn_conf names another file") from None
    lines = re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)", text, re.M)
    return {int(number): address for number, address in lines}


def server_address() -> str:
    """Address by which this machine reaches others; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A UDP socket that is connected takes the address of the interface that would be
            # used. The target is an address of RFC 5737, which belongs to nobody.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of a command line.

    Raises:
        UserError: a flag of a table of this server is given where tables are merged.
    """
    parser = Parser(__doc__)
    parser.add_argument(
        "--device_num", default="8", help="number of devices, or their range: 8 or [0,8)"
    )
    parser.add_argument(
        "--visible_devices",
        metavar="IDS",
        help="device ids in place of 0, 1, ... for example 4,5,6,7",
    )
    parser.add_argument("--server_ip", help="address of this server; found out where omitted")
    parser.add_argument(
        "--hccn_conf", type=Path, default=Path("/etc/hccn.conf"), help="addresses of the devices"
    )
    parser.add_argument("--merge", nargs="+", metavar="TABLE", help="merge these tables instead")
    parser.add_argument(
        "--output", type=Path, help="file to write; named after its devices where omitted"
    )
    args = parser.parse_args(argv)
    for key in ("device_num", "visible_devices", "server_ip", "hccn_conf") if args.merge else ():
        if getattr(args, key) != parser.get_default(key):
            raise UserError(f"{key} is for a table of this server, not for --merge")
    return args


def own_table(args: argparse.Namespace) -> tuple[RankTable, str]:
    """The table of this server, and the name of its file."""
    numbers = device_range(args.device_num)
    if args.visible_devices:
        numbers = visible_devices(args.visible_devices, numbers)
    addresses = device_addresses(args.hccn_conf)
    # A file without some of the devices is an error, no file at all is not: addresses are only
    # checked, not used, when a job starts.
    missing = [number for number in numbers if addresses and number not in addresses]
    if missing:
        raise UserError(
            f"{args.hccn_conf}: has no address of device {missing[0]}; device_num should name "
            "those that are in it"
        )
    server = args.server_ip or server_address()
    table = build_rank_table(server, numbers, addresses)
    return table, f"hccl_{len(numbers)}p_{''.join(map(str, numbers))}_{server}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; returns the exit code."""
    args = parse_arguments(argv)
    if args.merge:
        table = merge_rank_tables(load_rank_table(path) for path in args.merge)
        name = f"hccl_{len(table.servers)}s_{table.device_num}p.json"
    else:
        table, name = own_table(args)
    output = args.output or Path(name)
    make_folder(output.parent)
    # Indented by 4, as the model zoo's program writes these files.
    write_text(output, json.dumps(table.to_dict(), indent=4) + "\n")
    log.info("%s: %d devices on %d server(s)", output, table.device_num, len(table.servers))
    return 0


if __name__ == "__main__":
    run_main(main)
