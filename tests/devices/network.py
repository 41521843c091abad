"""Two hosts on this machine, each with a network of its own, and a cable between them."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

HOSTS = ("jaxdpo-h0", "jaxdpo-h1")


def missing() -> str | None:
    """Names what keeps the hosts from being made here, or returns None."""
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    if os.getuid() != 0:
        return "only root makes network namespaces"
    made = subprocess.run(["ip", "netns", "add", HOSTS[0]], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", HOSTS[0]], capture_output=True)
    return None if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


class Network:
    """Two hosts with an address each."""

    def __init__(self) -> None:
        self.address = "10.77.0.1"

    def prefix(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", HOSTS[number]]

    def cut(self) -> None:
        _run("ip", "-n", HOSTS[0], "link", "set", "jv0", "down")

    def mend(self) -> None:
        _run("ip", "-n", HOSTS[0], "link", "set", "jv0", "up")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Makes the two hosts, and removes them."""
    _remove()
    try:
        for number, host in enumerate(HOSTS):
            _run("ip", "netns", "add", host)
            # gloo listens on the address of the machine's name, which ip lays over /etc/hosts.
            folder = Path("/etc/netns") / host
            folder.mkdir(parents=True, exist_ok=True)
            name = socket.gethostname()
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n10.77.0.{number + 1} {name}\n")
        _run("ip", "link", "add", "jv0", "type", "veth", "peer", "name", "jv1")
        for number, host in enumerate(HOSTS):
            _run("ip", "link", "set", f"jv{number}", "netns", host)
            _run("ip", "-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"jv{number}")
            for device in (f"jv{number}", "lo"):
                _run("ip", "-n", host, "link", "set", device, "up")
        yield Network()
    finally:
        _remove()


def _remove() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
        shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
