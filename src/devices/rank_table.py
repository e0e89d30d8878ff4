"""HCCL rank tables: which devices of which servers take part in a job, and in which order. Imports no framework.

Two forms are known. The present one (version 1.0, and 1.2 with more keys) lists servers with their
devices and ranks:

    {"version": "1.0", "server_count": "1", "status": "completed", "server_list": [{"server_id":
    "10.0.0.1",
     "device": [{"device_id": "0", "device_ip": "192.168.1.6", "rank_id": "0"}, ...]}]}

The one before it, without a version, lists groups of instances. There a rank is given for each
instance, or follows from their order:

    {"status": "completed", "group_count": "1", "group_list": [{"instance_count": "2",
    "device_count": "2",
     "instance_list": [{"server_id": "10.0.0.1", "devices": [{"device_id": "0", "device_ip":
     "192.168.1.6"}]}, ...]}]}
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files import read_json

VERSIONS = ("1.0", "1.2")
ADDRESS_KEYS = ("host_ip", "server_ip")  # of servers whose id is a name


class RankTableError(UserError):
    """A rank table that cannot be used; the message names the file, the value and what would be right."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        device_id: number of the device on its server.
        device_ip: address of its network interface; empty where the table has none.
        rank: number of its process in the job.
    """

    device_id: int
    device_ip: str
    rank: int


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        name: its identity in the table, usually its IP address.
        address: IP address or host name to reach it.
        devices: in the order of their ranks.
    """

    name: str
    address: str
    devices: tuple[Device, ...]

    def to_dict(self) -> dict[str, Any]:
        """The server as in a table of version 1.0."""
        devices = [
            {
                "device_id": str(device.device_id),
                "device_ip": device.device_ip,
                "rank_id": str(device.rank),
            }
            for device in self.devices
        ]
        return {"server_id": self.name, "device": devices, "host_nic_ip": "reserve"}


@dataclass(frozen=True)
class RankTable:
    """The servers of a job in the order of their ranks; all have as many devices."""

    servers: tuple[Server, ...]

    @property
    def device_num(self) -> int:
        return sum(len(server.devices) for server in self.servers)

    @property
    def master(self) -> str:
        """Address of the server of rank 0."""
        return self.servers[0].address

    def node_rank(self, own: Collection[str], origin: str) -> int:
        """Position of the server that this machine is.

        Args:
            own: addresses and names of this machine.
            origin: the table's file, for errors.
        """
        found = [
            number
            for number, server in enumerate(self.servers)
            if {server.name, server.address} & set(own)
        ]
        if len(found) != 1:
            names = ", ".join(server.name for server in self.servers)
            raise RankTableError(
                f"{origin}: this machine ({', '.join(sorted(own))}) is "
                f"{'several' if found else 'none'} of its servers {names}; server_id should be the "
                "address of each machine"
            )
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """The table in version 1.0."""
        return {
            "version": "1.0",
            "server_count": str(len(self.servers)),
            "server_list": [server.to_dict() for server in self.servers],
            "status": "completed",
        }


def load_rank_table(path: str | Path) -> RankTable:
    """Read and check a rank table of either form."""
    path = Path(path)
    if not path.is_file():
        raise RankTableError(f"{path}: no such rank table; scripts/hccl_table.py writes one")
    return parse_rank_table(read_json(path, RankTableError), str(path))


def parse_rank_table(data: Any, origin: str) -> RankTable:
    """Check the contents of a rank table of either form; ``origin`` names its file in errors."""
    status = _get(data, "status", str, origin)
    if status != "completed":
        raise RankTableError(
            f"{origin}: status is '{status}', should be 'completed'; the table is not ready"
        )
    if "server_list" in data:
        servers = _servers(data, origin)
    elif "group_list" in data:
        servers = _instances(data, origin)
    else:
        raise RankTableError(
            f"{origin}: holds neither 'server_list' nor 'group_list'; it is no rank table"
        )
    return _checked(servers, origin)


def build_rank_table(
    server: str, device_ids: Sequence[int], device_ips: Mapping[int, str]
) -> RankTable:
    """The table of one server, whose ranks follow the order of its devices."""
    devices = tuple(
        Device(number, device_ips.get(number, ""), rank) for rank, number in enumerate(device_ids)
    )
    return _checked([Server(server, server, devices)], "rank table")


def merge_rank_tables(tables: Iterable[RankTable]) -> RankTable:
    """One table of the servers of several, whose ranks follow the order of the tables."""
    servers, first = [], 0
    for table in tables:
        for server in table.servers:
            devices = tuple(
                Device(device.device_id, device.device_ip, first + i)
                for i, device in enumerate(server.devices)
            )
            servers.append(Server(server.name, server.address, devices))
            first += len(devices)
    return _checked(servers, "merged rank table")


def _get(data: Any, key: str, kind: type, origin: str) -> Any:
    """A value; numbers are written as text in these files, and taken both ways."""
    if not isinstance(data, Mapping):
        raise RankTableError(
            f"{origin}: holds {type(data).__name__} where keys and values should be"
        )
    if key not in data:
        raise RankTableError(f"{origin}: key '{key}' is missing")
    value = data[key]
    if kind is int and not isinstance(value, bool) and str(value).isdecimal():
        return int(value)
    if kind is int or not isinstance(value, kind):
        raise RankTableError(f"{origin}: '{key}' is {value!r}, should be of type {kind.__name__}")
    return value


def _count(
    data: Mapping[str, Any], keys: Sequence[str], found: int, what: str, origin: str
) -> None:
    """Compare a count that the table states, where it does, with what it holds."""
    for key in keys:
        if key in data and _get(data, key, int, origin) != found:
            raise RankTableError(f"{origin}: '{key}' is {data[key]}, but it lists {found} {what}")


def _device(data: Any, rank: int | None, origin: str) -> Device:
    number = _get(data, "device_id", int, origin)
    address = data.get("device_ip", "")
    try:
        ipaddress.ip_address(address or "0.0.0.0")
    except ValueError:
        raise RankTableError(
            f"{origin}: 'device_ip' of device {number} is {address!r}, should be an IP address"
        ) from None
    return Device(number, address, _get(data, "rank_id", int, origin) if rank is None else rank)


def _servers(data: Mapping[str, Any], origin: str) -> list[Server]:
    """Servers of the form with a version."""
    version = _get(data, "version", str, origin)
    if version not in VERSIONS:
        raise RankTableError(f"{origin}: version '{version}', should be {' or '.join(VERSIONS)}")
    servers, listed = [], _get(data, "server_list", list, origin)
    for entry in listed:
        name = _get(entry, "server_id", str, origin)
        address = next((entry[key] for key in ADDRESS_KEYS if entry.get(key)), name)
        devices = [_device(device, None, origin) for device in _get(entry, "device", list, origin)]
        servers.append(
            Server(name, address, tuple(sorted(devices, key=lambda device: device.rank)))
        )
    _count(data, ("server_count",), len(listed), "servers", origin)
    return servers


def _instances(data: Mapping[str, Any], origin: str) -> list[Server]:
    """Servers of the form without a version; instances of the same server come together."""
    groups = _get(data, "group_list", list, origin)
    _count(data, ("group_count",), len(groups), "groups", origin)
    found: dict[str, list[Device]] = {}
    rank = 0
    for group in groups:
        instances = _get(group, "instance_list", list, origin)
        devices = 0
        for instance in instances:
            name = _get(instance, "server_id", str, origin)
            listed = _get(instance, "devices", list, origin)
            if "rank_id" in instance:
                rank = _get(instance, "rank_id", int, origin)
            for device in listed:
                found.setdefault(name, []).append(_device(device, rank, origin))
                rank += 1
            devices += len(listed)
        _count(group, ("instance_count",), len(instances), "instances", origin)
        _count(group, ("device_count", "device_num"), devices, "devices", origin)
        _count(
            group,
            ("server_num",),
            len({entry["server_id"] for entry in instances}),
            "servers",
            origin,
        )
    return [
        Server(name, name, tuple(sorted(devices, key=lambda device: device.rank)))
        for name, devices in found.items()
    ]


def _checked(servers: Sequence[Server], origin: str) -> RankTable:
    """The table of these servers, unless they contradict themselves or each other."""
    if not servers:
        raise RankTableError(f"{origin}: lists no server")
    names = [server.name for server in servers]
    for server in servers:
        place = f"{origin}: server {server.name}"
        if names.count(server.name) > 1:
            raise RankTableError(f"{place} is listed twice")
        if not server.devices:
            raise RankTableError(f"{place} has no devices")
        numbers = [device.device_id for device in server.devices]
        for number in numbers:
            if numbers.count(number) > 1:
                raise RankTableError(f"{place} has device {number} twice")
        if len(numbers) != len(servers[0].devices):
            raise RankTableError(
                f"{place} has {len(numbers)} devices, {names[0]} has {len(servers[0].devices)}; msrun "
                "starts as many processes on every server"
            )
    ranks = sorted(device.rank for server in servers for device in server.devices)
    for rank, expected in zip(ranks, range(len(ranks))):
        if rank != expected:
            wrong = f"rank {rank} twice" if ranks.count(rank) > 1 else f"no rank {expected}"
            raise RankTableError(
                f"{origin}: has {wrong}; {len(ranks)} devices should have the ranks 0 to "
                f"{len(ranks) - 1}"
            )
    ordered = tuple(sorted(servers, key=lambda server: server.devices[0].rank))
    for server in ordered:
        first, last = server.devices[0].rank, server.devices[-1].rank
        if last - first >= len(server.devices):
            raise RankTableError(
                f"{origin}: ranks {first} to {last} of server {server.name} are not consecutive, as "
                "msrun numbers them"
            )
    return RankTable(ordered)
