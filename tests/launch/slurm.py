"""A real Slurm on this machine, without systemd: its daemons in a folder of their own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Names what keeps Slurm from running here, or returns None."""
    absent = [name for name in DAEMONS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return None if os.getuid() == 0 else "Slurm's daemons are run by root"


class Slurm:
    """A controller and two nodes, n1 and n2, of one core each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str, **environment: str) -> str:
        """Runs a client command and returns its output."""
        done = subprocess.run(
            words,
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING."""
        shown = self.call("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]

    def logs(self) -> str:
        return "".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Starts the daemons, and stops them by their pid files at the end."""
    munge = folder / "munge"
    munge.mkdir(mode=0o700)
    (folder / "state").mkdir()
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (munge, key):
        shutil.chown(path, "munge")
    # munged checks that nobody else can write to any folder above its files.
    paths = {name: munge / name for name in ("socket", "pid", "log", "seed")}
    options = [f"--{name}-file={paths[name]}" for name in ("pid", "log", "seed")]
    words = ["munged", "--force", f"--socket={paths['socket']}", f"--key-file={key}", *options]
    ports = [_free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            controller=ports[0],
            ports=ports[1:],
        )
    )
    slurm = Slurm(folder)
    try:
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", " ".join(words)], check=True)
        slurm.call("slurmctld")
        for node in ("n1", "n2"):
            slurm.call("slurmd", "-N", node)
        _wait_for_nodes(slurm)
        yield slurm
    finally:
        for pid_file in (*folder.glob("slurm*.pid"), paths["pid"]):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)


def _wait_for_nodes(slurm: Slurm) -> None:
    until = time.monotonic() + 60
    while slurm.call("sinfo", "--noheader", "--format=%t %D").split() != ["idle", "2"]:
        assert time.monotonic() < until, slurm.call("sinfo") + slurm.logs()
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
