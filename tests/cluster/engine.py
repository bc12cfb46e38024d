"""The Docker engine: used where one runs, installed and started where the machine allows it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.files import write_text
from tests.cluster.processes import capture
from tests.cluster.settings import NODE_SOURCES, Cache
from tests.cluster.steps import StepRun

CAP_SYS_RESOURCE = 24
START_SECONDS = 60


def answers() -> bool:
    """Whether a Docker engine can be reached with the user's own settings."""
    asked = capture("docker", "version", "--format", "{{.Server.Version}}", check=False, timeout=20)
    return asked.returncode == 0


def image_exists(reference: str) -> bool:
    return capture("docker", "image", "inspect", reference, check=False).returncode == 0


def registry_answers(reference: str, timeout: float = 15) -> bool:
    """Whether an image can be had from a registry, without fetching it."""
    asked = capture("docker", "manifest", "inspect", reference, check=False, timeout=timeout)
    return asked.returncode == 0


def has_capability(status: str, capability: int) -> bool:
    """Whether the bounding set in the text of /proc/PID/status has a capability."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapBnd":
            return bool(int(value, 16) >> capability & 1)
    return False


def may_raise_limits() -> bool:
    """False in sandboxes whose root lacks CAP_SYS_RESOURCE. Elsewhere (also on a desktop whose
    engine runs in a virtual machine) this process's own set says nothing, and it is true."""
    status = Path("/proc/self/status")
    if not status.exists() or os.geteuid() != 0:
        return True
    return has_capability(status.read_text(), CAP_SYS_RESOURCE)


def is_debian() -> bool:
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def install_packages(run: StepRun, *packages: str) -> None:
    """Install Debian packages, or say what is missing where that isn't possible."""
    if not is_debian() or os.geteuid() != 0:
        raise ClusterError(
            f"this machine lacks {' and '.join(packages)}, and installing it by itself is done "
            "only on Debian as root.",
            "Install and start Docker (then `docker version` shows a server), and run this again.",
        )
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    wait = "DPkg::Lock::Timeout=300"
    # Repairs what an interrupted installation left.
    run.command("dpkg", "--configure", "-a", env=environment)
    # One unreachable source must not keep the others from being used.
    run.note("package lists")
    with contextlib.suppress(ClusterError):
        run.command("apt-get", "-o", wait, "update", env=environment)
    run.note(", ".join(packages))
    run.command(
        "apt-get", "-o", wait, "install", "-y", "--no-install-recommends", *packages,
        env=environment,
    )  # fmt: skip


class Engine:
    """Starts and stops an engine of ours; one that runs already is only ever used."""

    def __init__(self, cache: Cache) -> None:
        self._pid_file = cache.engine / "dockerd.pid"
        self._log = cache.engine / "dockerd.log"
        self._clip = cache.engine / "runc-clip"

    def ensure(self, run: StepRun) -> None:
        """Make sure that an engine answers."""
        if answers():
            run.reuse("already running")
            return
        if Path("/run/systemd/system").is_dir() and os.geteuid() == 0:
            run.command("systemctl", "start", "docker")
        elif os.geteuid() == 0 and shutil.which("dockerd"):
            self._start(run)
        if not answers():
            raise ClusterError(
                "no Docker engine answers.",
                "Start Docker, check that `docker version` shows a server, and run this again.",
            )

    def _start(self, run: StepRun) -> None:
        process = subprocess.Popen(
            ["dockerd", *self._runtime_options()],
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
            # Outlives this command, and a Ctrl-C meant for it.
            start_new_session=True,
        )
        write_text(self._pid_file, f"{process.pid}\n")
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                run.log(self._log.read_text(errors="replace"))
                raise ClusterError("dockerd did not start.", f"Its log: {self._log}")
            time.sleep(0.3)
        run.note(f"started as process {process.pid}")

    def _runtime_options(self) -> list[str]:
        if may_raise_limits():
            return []
        # Docker asks for every capability for privileged containers, and runc refuses the ones
        # that this machine hasn't got.
        write_text(self._clip, (NODE_SOURCES / "runc-clip").read_text(), mode=0o755)
        return ["--add-runtime", f"clip={self._clip}", "--default-runtime", "clip"]

    def started_by_us(self) -> int | None:
        """Process id of the engine that we started, while it runs."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        return pid if command == "dockerd" else None

    def stop(self) -> bool:
        """Stop the engine if it is ours; returns whether it was."""
        pid = self.started_by_us()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + START_SECONDS
        while self.started_by_us() == pid and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.2)
        if self.started_by_us() == pid:
            raise ClusterError(f"dockerd (process {pid}) does not stop.", f"Its log: {self._log}")
        self._pid_file.unlink(missing_ok=True)
        return True
