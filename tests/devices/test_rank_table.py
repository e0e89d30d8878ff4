"""Rank tables of both forms, what is wrong with them, and what the launcher starts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest

from src.devices import launcher
from src.devices.rank_table import RankTableError, load_rank_table, parse_rank_table
from src.errors import UserError
from tests.conftest import ROOT


def devices(count: int, first: int = 0, offset: int = 0) -> list[dict]:
    return [
        {"device_id": str(offset + i), "device_ip": f"192.168.1.{i + 1}", "rank_id": str(first + i)}
        for i in range(count)
    ]


def table(servers: int = 2, count: int = 4) -> dict:
    return {
        "version": "1.0",
        "server_count": str(servers),
        "status": "completed",
        "server_list": [
            {
                "server_id": f"10.0.0.{server + 1}",
                "device": devices(count, server * count, 4),
                "host_nic_ip": "reserve",
            }
            for server in range(servers)
        ],
    }


OLD = {
    "status": "completed",
    "group_count": "1",
    "group_list": [
        {
            "group_name": "job",
            "instance_count": "2",
            "device_count": "4",
            "instance_list": [
                {
                    "pod_name": f"job-{server}",
                    "server_id": f"10.0.0.{server + 1}",
                    "devices": [
                        {"device_id": str(i), "device_ip": f"192.168.{server}.{i + 1}"}
                        for i in (2, 3)
                    ],
                }
                for server in range(2)
            ],
        }
    ],
}
OLDEST = {
    "board_id": "0x0000",
    "chip_info": "910",
    "deploy_mode": "lab",
    "group_count": "1",
    "status": "completed",
    "para_plane_nic_location": "device",
    "group_list": [
        {
            "device_num": "4",
            "server_num": "2",
            "group_name": "",
            "instance_count": "4",
            "instance_list": [
                {
                    "devices": [
                        {"device_id": str(2 + rank % 2), "device_ip": f"192.168.0.{rank + 1}"}
                    ],
                    "rank_id": str(rank),
                    "server_id": f"10.0.0.{rank // 2 + 1}",
                }
                for rank in (3, 1, 0, 2)
            ],
        }
    ],
}


def test_all_forms_say_the_same():
    expected = [("10.0.0.1", [(2, 0), (3, 1)]), ("10.0.0.2", [(2, 2), (3, 3)])]
    new = table(2, 2)
    for server in new["server_list"]:
        for device, number in zip(server["device"], (2, 3)):
            device["device_id"] = number  # numbers are taken too
    for data in (new, OLD, OLDEST):
        found = parse_rank_table(data, "table")
        assert [
            (server.name, [(device.device_id, device.rank) for device in server.devices])
            for server in found.servers
        ] == expected
        assert (found.device_num, found.master) == (4, "10.0.0.1")
        assert parse_rank_table(found.to_dict(), "again") == found


def test_ranks_order_the_servers():
    data = table()
    data["server_list"].reverse()
    found = parse_rank_table(data, "table")
    assert found.master == "10.0.0.1" and found.node_rank({"10.0.0.2", "127.0.0.1"}, "table") == 1
    message = r"table: this machine \(10.1.1.1\) is none of its servers 10.0.0.1, 10.0.0.2"
    with pytest.raises(RankTableError, match=message):
        found.node_rank({"10.1.1.1"}, "table")


def change(*path, value=None, base=table()):
    data = copy.deepcopy(base)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


FIRST, SECOND = ("server_list", 0, "device"), ("server_list", 1, "device")
WRONG = [
    (change("status", value="initializing"), "status is 'initializing', should be 'completed'"),
    (change("version", value="2.0"), "version '2.0', should be 1.0 or 1.2"),
    (change("server_list"), "holds neither 'server_list' nor 'group_list'"),
    (change("server_count", value="3"), "'server_count' is 3, but it lists 2 servers"),
    (change("server_list", value=[]), "'server_count' is 2, but it lists 0 servers"),
    (change(*FIRST), "key 'device' is missing"),
    (change(*FIRST, value=[]), "server 10.0.0.1 has no devices"),
    (change(*SECOND, value=devices(3, 4)), "server 10.0.0.2 has 3 devices, 10.0.0.1 has 4"),
    (change(*FIRST, 0, "device_id", value="5"), "server 10.0.0.1 has device 5 twice"),
    (change(*FIRST, 0, "device_id", value="x"), "'device_id' is 'x', should be of type int"),
    (
        change(*FIRST, 0, "device_ip", value="192.168"),
        "'device_ip' of device 4 is '192.168', should be an IP address",
    ),
    (
        change(*FIRST, 0, "rank_id", value="1"),
        "has rank 1 twice; 8 devices should have the ranks 0 to 7",
    ),
    (change(*FIRST, 0, "rank_id", value="8"), "has no rank 0"),
    (change("server_list", 1, "server_id", value="10.0.0.1"), "server 10.0.0.1 is listed twice"),
    (
        change("group_list", 0, "device_count", value="8", base=OLD),
        "'device_count' is 8, but it lists 4 devices",
    ),
    (
        change("group_list", 0, "instance_count", value="1", base=OLD),
        "'instance_count' is 1, but it lists 2 instances",
    ),
    (
        change("group_list", 0, "server_num", value="1", base=OLDEST),
        "'server_num' is 1, but it lists 2 servers",
    ),
    ([], "holds list where keys and values should be"),
]


@pytest.mark.parametrize(
    "data, message", WRONG, ids=lambda value: value[:30] if isinstance(value, str) else ""
)
def test_wrong_tables_get_one_line(data, message):
    with pytest.raises(RankTableError) as error:
        parse_rank_table(data, "t.json")
    assert (
        str(error.value).startswith("t.json: ")
        and message in str(error.value)
        and "\n" not in str(error.value)
    )


def test_ranks_that_msrun_cannot_number():
    data = table()
    for first, second in zip(data["server_list"][0]["device"], data["server_list"][1]["device"]):
        first["rank_id"], second["rank_id"] = (
            str(2 * int(first["rank_id"])),
            str(2 * int(first["rank_id"]) + 1),
        )
    with pytest.raises(RankTableError, match="ranks 0 to 6 of server 10.0.0.1 are not consecutive"):
        parse_rank_table(data, "t.json")


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


def test_table_is_written_and_merged(tmp_path):
    (tmp_path / "hccn.conf").write_text(
        "address_0=192.168.1.6\nnetmask_0=255.255.255.0\n address_1 = 192.168.1.7\n"
    )

    def write(*flags: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [
                sys.executable,
                str(ROOT / "scripts/hccl_table.py"),
                "--hccn_conf",
                "hccn.conf",
                *flags,
            ],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
        )

    for server in ("10.0.0.1", "10.0.0.2"):
        run = write("--device_num", "[0,2)", "--server_ip", server)
        assert run.returncode == 0, run.stderr
    names = [f"hccl_2p_01_10.0.0.{server}.json" for server in (1, 2)]
    one = load_rank_table(tmp_path / names[0])
    assert [device.device_ip for device in one.servers[0].devices] == ["192.168.1.6", "192.168.1.7"]
    assert write("--merge", *names).returncode == 0
    both = load_rank_table(tmp_path / "hccl_2s_4p.json")
    assert [device.rank for server in both.servers for device in server.devices] == [0, 1, 2, 3]
    for flags, message in (
        (("--device_num", "4"), "hccn.conf: has no address of device 2"),
        (("--device_num", "two"), "device_num is 'two'"),
        (("--visible_devices", "1"), "should be the ids of at least 8 devices"),
    ):
        run = write(*flags)
        assert (
            run.returncode == 2
            and message in run.stderr
            and len(run.stderr.strip().splitlines()) == 1
        )


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
