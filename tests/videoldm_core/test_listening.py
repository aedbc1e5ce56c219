"""A training stage listens on the loopback interface alone: no other machine can reach it."""

import fcntl
import ipaddress
import os
import re
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from flows.launch import Command
from flows.launch.local import LocalLauncher
from flows.launch.supervisor import MARK, marked_processes
from videoldm_core.jobs.published import read_published

from .conftest import STAGE

SIOCGIFADDR = 0x8915
LISTENS = {"tcp": "0A", "udp": "07"}  # the state of a socket that takes what comes


class Socket(NamedTuple):
    """An open door of a process."""

    process: int
    kind: str
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach it."""
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def address_of(hexadecimal: str) -> str:
    """An address as /proc/net has it: words in the byte order of the machine."""
    words = [bytes.fromhex(word) for word in re.findall("........", hexadecimal)]
    order = 1 if sys.byteorder == "big" else -1
    packed = b"".join(word[::order] for word in words)
    return str(ipaddress.ip_address(packed))


def inodes_of(process: int) -> set[str]:
    """The sockets that a process has open."""
    links = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def listening(process: int) -> set[Socket]:
    """The doors of a process; none once it has ended."""
    found = set()
    try:
        inodes = inodes_of(process)
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{process}/net/{kind}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if inode in inodes and state == LISTENS[kind[:3]]:
                    address, port = local.split(":")
                    found.add(Socket(process, kind, address_of(address), int(port, 16)))
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found


def launched_by_us() -> set[str]:
    """The marks of launches whose leash is a child of this process."""
    marks = set()
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    for child in {child for listed in children for child in listed.read_text().split()}:
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        named = [entry.decode() for entry in variables if entry.startswith(f"{MARK}=".encode())]
        marks |= {entry.partition("=")[2] for entry in named}
    return marks


def test_a_door_is_seen_and_told_from_a_local_one():
    with socket.socket() as everywhere, socket.socket() as local:
        everywhere.bind(("0.0.0.0", 0))
        local.bind(("127.0.0.1", 0))
        for door in (everywhere, local):
            door.listen()
        found = {door.port: door.is_local for door in listening(os.getpid())}
        assert found[everywhere.getsockname()[1]] is False
        assert found[local.getsockname()[1]] is True


def has_address(interface: str) -> bool:
    """Whether an interface has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:
            return False
    return True


def other_interface() -> str:
    """An interface that other machines reach us over; "lo" where there is none."""
    others = [name for _, name in socket.if_nameindex() if name != "lo" and has_address(name)]
    return next(iter(others), "lo")


@pytest.mark.parametrize("processes", [1, 2])
def test_no_process_of_a_running_stage_can_be_reached_from_another_machine(
    processes, job_of, monkeypatch
):
    """Though the environment names another interface, as it does on a cluster."""
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", other_interface())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if processes > torch.cuda.device_count():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    short = STAGE.model_copy(update={"steps": 3, "warmup": 1, "cooldown": 1})
    job, file = job_of(f"listening{processes}", stage=short)
    command = Command(
        module="videoldm_core.train",
        argument=file,
        processes=processes,
        log=job.out / "log.txt",
        journal=job.out / "journal.jsonl",
    )
    failures: list[Exception] = []

    def launch() -> None:
        try:
            LocalLauncher().launch(command, on_line=print, cancelled=threading.Event())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    doors: set[Socket] = set()
    while thread.is_alive():
        for mark in launched_by_us():
            for process in marked_processes(mark):
                doors |= listening(process)
        thread.join(0.02)
    assert failures == []
    assert read_published(job.out) is not None
    assert [door for door in doors if not door.is_local] == []
    assert len({door.process for door in doors}) == processes, "every one has been looked at"
