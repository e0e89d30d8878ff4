"""HCCL rank tables: which devices of which servers take part in a job, and in which order.

Two forms are known. The present one (version 1.0, and 1.2 with more keys) lists servers with their
devices and ranks:

    {"version": "1.0", "server_count": "1", "status": "completed",
     "server_list": [{"server_id": "10.0.0.1",
                      "device": [{"device_id": "0", "device_ip": "192.168.1.6", "rank_id": "0"},
                                 ...]}]}

The one before it, without a version, lists groups of instances. There a rank is given for each
instance, or follows from their order:

    {"status": "completed", "group_count": "1",
     "group_list": [{"instance_count": "2", "device_count": "2",
                     "instance_list": [{"server_id": "10.0.0.1",
                                        "devices": [{"device_id": "0",
                                                     "device_ip": "192.168.1.6"}]},
                                       ...]}]}

Other programs write these files, so keys that are not known are passed over, and numbers are read
whether they are written as text or as numbers. Imports no framework.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from src.errors import UserError
from src.files import parse_record, read_json


class RankTableError(UserError):
    """A rank table that cannot be used; the message has the file, the value and what is right."""


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
        address = {"host_ip": self.address} if self.address != self.name else {}
        return {"server_id": self.name, **address, "device": devices, "host_nic_ip": "reserve"}


@dataclass(frozen=True)
class RankTable:
    """The servers of a job in the order of their ranks; all have the same number of devices."""

    servers: tuple[Server, ...]

    @property
    def device_num(self) -> int:
        """Devices of all servers together."""
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

        Raises:
            RankTableError: none or several of the servers are this machine.
        """
        # server_id may be a name that no interface has; then host_ip or server_ip has the address.
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
    """Read and check a rank table of either form.

    Raises:
        RankTableError: the file is missing, is no rank table, or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise RankTableError(f"{path}: no such rank table; scripts/hccl_table.py writes one")
    return parse_rank_table(read_json(path, RankTableError), str(path))


def parse_rank_table(data: Any, origin: str) -> RankTable:
    """Check the contents of a rank table of either form.

    Args:
        data: what its JSON file holds.
        origin: names the file in errors.

    Raises:
        RankTableError: it is no rank table, or contradicts itself.
    """
    if not isinstance(data, Mapping):
        raise RankTableError(
            f"{origin}: holds {type(data).__name__} where keys and values should be"
        )
    # The key says which form it is, as the older one has no version.
    record: _ServerTable | _GroupTable
    if "server_list" in data:
        record = parse_record(_ServerTable, data, origin, RankTableError)
    elif "group_list" in data:
        record = parse_record(_GroupTable, data, origin, RankTableError)
    else:
        raise RankTableError(
            f"{origin}: holds neither 'server_list' nor 'group_list'; it is no rank table"
        )
    record.check_counts(origin)
    return _checked(record.servers(), origin)


def build_rank_table(
    server: str, device_ids: Sequence[int], device_ips: Mapping[int, str]
) -> RankTable:
    """The table of one server, whose ranks follow the order of its devices.

    Args:
        server: its address.
        device_ids: numbers of the devices that take part.
        device_ips: addresses of devices, by number; those of others are left empty.
    """
    devices = tuple(
        Device(number, device_ips.get(number, ""), rank) for rank, number in enumerate(device_ids)
    )
    return _checked([Server(server, server, devices)], "rank table")


def merge_rank_tables(tables: Iterable[RankTable]) -> RankTable:
    """One table of the servers of several, whose ranks follow the order of the tables."""
    # Each table counts its ranks from 0; here every server goes on behind those before it.
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


# The two forms of the file.


def _number(value: Any) -> Any:
    """A number that is written as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _completed(value: str) -> str:
    if value != "completed":
        raise PydanticCustomError("status", "should be 'completed'; the table is not ready")
    return value


def _ip_address(value: Any) -> Any:
    """Tables of devices without a network have an empty address, or none."""
    if not value:
        return ""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise PydanticCustomError("address", "should be an IP address") from None
    return value


# Under parse_record's strict rules text is no number, so it becomes one before they are applied.
Number = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Status = Annotated[str, AfterValidator(_completed)]
Address = Annotated[str, BeforeValidator(_ip_address)]


def _check_count(key: str, stated: int | None, found: int, what: str, origin: str) -> None:
    """Compare a count that a table states, where it does, with what it lists."""
    if stated not in (None, found):
        raise RankTableError(f"{origin}: '{key}' is {stated}, but it lists {found} {what}")


class _Device(BaseModel):
    device_id: Number
    device_ip: Address = ""

    def of_rank(self, rank: int) -> Device:
        return Device(self.device_id, self.device_ip, rank)


class _RankedDevice(_Device):
    rank_id: Number


class _Server(BaseModel):
    server_id: str
    # Of servers whose id is a name; which of the two keys, depends on the program that wrote it.
    host_ip: str | None = None
    server_ip: str | None = None
    device: list[_RankedDevice]


class _ServerTable(BaseModel):
    """The form with a version."""

    status: Status
    version: Literal["1.0", "1.2"]
    server_count: Number | None = None
    server_list: list[_Server]

    def check_counts(self, origin: str) -> None:
        _check_count("server_count", self.server_count, len(self.server_list), "servers", origin)

    def servers(self) -> list[Server]:
        return [
            _ordered(
                entry.server_id,
                entry.host_ip or entry.server_ip or entry.server_id,
                [device.of_rank(device.rank_id) for device in entry.device],
            )
            for entry in self.server_list
        ]


class _Instance(BaseModel):
    server_id: str
    # Of the first of its devices; without it ranks go on behind those of the instance before.
    rank_id: Number | None = None
    devices: list[_Device]


class _Group(BaseModel):
    instance_count: Number | None = None
    # Two names of the same count, by different programs.
    device_count: Number | None = None
    device_num: Number | None = None
    server_num: Number | None = None
    instance_list: list[_Instance]


class _GroupTable(BaseModel):
    """The form without a version."""

    status: Status
    group_count: Number | None = None
    group_list: list[_Group]

    def check_counts(self, origin: str) -> None:
        _check_count("group_count", self.group_count, len(self.group_list), "groups", origin)
        for group in self.group_list:
            instances = group.instance_list
            devices = sum(len(instance.devices) for instance in instances)
            servers = len({instance.server_id for instance in instances})
            for key, found, what in (
                ("instance_count", len(instances), "instances"),
                ("device_count", devices, "devices"),
                ("device_num", devices, "devices"),
                ("server_num", servers, "servers"),
            ):
                _check_count(key, getattr(group, key), found, what, origin)

    def servers(self) -> list[Server]:
        """Instances of the same server come together."""
        found: dict[str, list[Device]] = {}
        rank = 0
        for instance in (entry for group in self.group_list for entry in group.instance_list):
            if instance.rank_id is not None:
                rank = instance.rank_id
            for device in instance.devices:
                found.setdefault(instance.server_id, []).append(device.of_rank(rank))
                rank += 1
        return [_ordered(name, name, devices) for name, devices in found.items()]


def _ordered(name: str, address: str, devices: Iterable[Device]) -> Server:
    return Server(name, address, tuple(sorted(devices, key=lambda device: device.rank)))


# What holds for both.


def _checked(servers: Sequence[Server], origin: str) -> RankTable:
    """The table of these servers, unless they contradict themselves or each other."""
    if not servers:
        raise RankTableError(f"{origin}: lists no server")
    _check_servers(servers, origin)
    _check_ranks(servers, origin)
    return RankTable(tuple(sorted(servers, key=lambda server: server.devices[0].rank)))


def _check_servers(servers: Sequence[Server], origin: str) -> None:
    """Each server is listed once, with different devices, and as many as the others."""
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
        expected = len(servers[0].devices)
        if len(numbers) != expected:
            raise RankTableError(
                f"{place} has {len(numbers)} devices, {names[0]} has {expected}; msrun starts the "
                "same number of processes on every server"
            )


def _check_ranks(servers: Sequence[Server], origin: str) -> None:
    """Ranks count from 0 without a gap, and those of a server follow each other."""
    ranks = sorted(device.rank for server in servers for device in server.devices)
    for expected, rank in enumerate(ranks):
        if rank != expected:
            wrong = f"rank {rank} twice" if ranks.count(rank) > 1 else f"no rank {expected}"
            raise RankTableError(
                f"{origin}: has {wrong}; {len(ranks)} devices should have the ranks 0 to "
                f"{len(ranks) - 1}"
            )
    # msrun gives the ranks of a server by its place among the servers: node_rank * devices + 0, 1,
    # ... A table that mixes the servers could be read, but not started.
    for server in sorted(servers, key=lambda server: server.devices[0].rank):
        first, last = server.devices[0].rank, server.devices[-1].rank
        if last - first >= len(server.devices):
            raise RankTableError(
                f"{origin}: ranks {first} to {last} of server {server.name} are not consecutive, "
                "as msrun numbers them"
            )
