"""Rank tables of both forms, and what is wrong with them."""

from __future__ import annotations

import copy
import functools

import pytest

from src.devices.rank_table import (
    RankTableError,
    build_rank_table,
    load_rank_table,
    merge_rank_tables,
    parse_rank_table,
)


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
        for device, number in zip(server["device"], (2, 3), strict=True):
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


NEW = table()


def change(*path, value=None, base=NEW):
    """A copy of a table with another value at a place, or without what is there."""
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
    (
        change("status", value="initializing"),
        "status is 'initializing': should be 'completed'; the table is not ready",
    ),
    (change("version", value="2.0"), "version is '2.0': input should be '1.0' or '1.2'"),
    (change("server_list"), "holds neither 'server_list' nor 'group_list'"),
    (change("server_count", value="3"), "'server_count' is 3, but it lists 2 servers"),
    (change("server_list", value=[]), "'server_count' is 2, but it lists 0 servers"),
    (change(*FIRST), "key 'server_list.0.device' is missing"),
    (change(*FIRST, value=[]), "server 10.0.0.1 has no devices"),
    (change(*SECOND, value=devices(3, 4)), "server 10.0.0.2 has 3 devices, 10.0.0.1 has 4"),
    (change(*FIRST, 0, "device_id", value="5"), "server 10.0.0.1 has device 5 twice"),
    (
        change(*FIRST, 0, "device_id", value="x"),
        "server_list.0.device.0.device_id is 'x': input should be a valid integer",
    ),
    (
        change(*FIRST, 0, "device_ip", value="192.168"),
        "server_list.0.device.0.device_ip is '192.168': should be an IP address",
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


def test_merged_servers_keep_their_addresses():
    tables = []
    for name, address in (("node-a", "10.0.0.1"), ("node-b", "10.0.0.2")):
        data = build_rank_table(name, [0], {}).to_dict()
        data["server_list"][0]["host_ip"] = address
        tables.append(parse_rank_table(data, "t.json"))
    both = parse_rank_table(merge_rank_tables(tables).to_dict(), "both.json")
    assert [server.address for server in both.servers] == ["10.0.0.1", "10.0.0.2"]
    assert both.master == "10.0.0.1"


def test_ranks_that_msrun_cannot_number():
    data = table()
    one, two = (server["device"] for server in data["server_list"])
    for first, second in zip(one, two, strict=True):
        even = 2 * int(first["rank_id"])
        first["rank_id"], second["rank_id"] = str(even), str(even + 1)
    with pytest.raises(RankTableError, match="ranks 0 to 6 of server 10.0.0.1 are not consecutive"):
        parse_rank_table(data, "t.json")


def test_table_is_written_and_merged(tmp_path, run_program, call_program):
    (tmp_path / "hccn.conf").write_text(
        "address_0=192.168.1.6\nnetmask_0=255.255.255.0\n address_1 = 192.168.1.7\n"
    )

    command = ("scripts/hccl_table.py", "--hccn_conf", "hccn.conf")
    write = functools.partial(call_program, *command)
    for program, server in ((run_program, "10.0.0.1"), (call_program, "10.0.0.2")):
        run = program(*command, "--device_num", "[0,2)", "--server_ip", server)
        assert run.returncode == 0, run.stderr
    names = [f"hccl_2p_01_10.0.0.{server}.json" for server in (1, 2)]
    one = load_rank_table(tmp_path / names[0])
    assert [device.device_ip for device in one.servers[0].devices] == ["192.168.1.6", "192.168.1.7"]
    merge = ("scripts/hccl_table.py", "--merge", *names)
    assert call_program(*merge, "--output", "tables/both.json").returncode == 0
    both = load_rank_table(tmp_path / "tables/both.json")
    assert [device.rank for server in both.servers for device in server.devices] == [0, 1, 2, 3]
    for flags, message in (
        (("--device_num", "4"), "hccn.conf: has no address of device 2"),
        (("--device_num", "two"), "device_num is 'two'"),
        (("--merge", *names), "hccn_conf is for a table of this server"),
        (("--visible_devices", "1"), "should be the ids of at least 8 devices"),
    ):
        run = write(*flags)
        assert (
            run.returncode == 2
            and message in run.stderr
            and len(run.stderr.strip().splitlines()) == 1
        )
