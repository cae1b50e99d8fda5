"""A standalone cluster on this machine: a master and two workers, each a JVM of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyspark

# Two addresses of this machine, so that Spark sees two hosts: it never runs a speculative copy
# on the host of the first attempt, and looks for data host by host.
WORKERS = ("127.0.0.1", "127.0.0.2")


class Standalone:
    """Start with ``with``; nothing is left afterwards, whatever happened inside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen] = []
        self.url = ""

    def __enter__(self) -> Standalone:
        with socket.socket() as free:
            free.bind((WORKERS[0], 0))
            port = free.getsockname()[1]
        self.url = f"spark://{WORKERS[0]}:{port}"
        try:
            self._start("master.Master", "--host", WORKERS[0], "--port", str(port))
            self._wait_for(0, "I have been elected leader")
            for i, host in enumerate(WORKERS):
                work = str(self.directory / f"work{i}")
                options = ["--host", host, "--cores", "1", "--memory", "1g", "--work-dir", work]
                self._start("worker.Worker", *options, self.url)
            for i in range(len(WORKERS)):
                self._wait_for(1 + i, "Successfully registered with master")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        family = []
        for process in self.processes:
            if process.poll() is None:
                family += psutil.Process(process.pid).children(recursive=True)  # executors
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in psutil.wait_procs(family, timeout=20)[1]:
            child.kill()

    @property
    def workers(self) -> list[int]:
        """The workers' process ids; executors are their children."""
        return [process.pid for process in self.processes[1:]]

    def local_directory(self, i: int) -> Path:
        """Where worker ``i`` keeps what its executors write."""
        return self.directory / f"local{i}"

    def submit(self, script: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
        """Run a driver and wait for it."""
        return subprocess.run(
            [sys.executable, str(script), self.url, *arguments],
            env=self._environment("driver"),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def _environment(self, name: str) -> dict[str, str]:
        (self.directory / "conf").mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SPARK_")}
        return environment | {
            "SPARK_CONF_DIR": str(self.directory / "conf"),  # empty: the tests set what they need
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "SPARK_LOCAL_DIRS": str(self.directory / name),
            "SPARK_LOCAL_IP": WORKERS[0],
            "PYSPARK_PYTHON": sys.executable,
        }

    def _start(self, name: str, *options: str) -> None:
        number = len(self.processes) - 1
        command = Path(pyspark.__path__[0]) / "bin" / "spark-class"
        with open(self._log(len(self.processes)), "w") as log:
            process = subprocess.Popen(
                [str(command), f"org.apache.spark.deploy.{name}", "--webui-port", "0", *options],
                env=self._environment(f"local{number}"),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)

    def _log(self, i: int) -> Path:
        return self.directory / f"log{i}.txt"

    def _wait_for(self, i: int, words: str) -> None:
        deadline = time.monotonic() + 90
        while words not in (log := self._log(i).read_text()):
            if self.processes[i].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the standalone cluster did not start:\n{log}")
            time.sleep(0.1)
