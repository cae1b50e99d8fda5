"""Runs one spark-submit for ``spark-submit.sh``, which has set up Python and Java before.

It finds the job file among the arguments, adds what ships the package to executors, starts
spark-submit in a session of its own, forwards signals to the job's Python, and returns the
job's exit code. Standard library only: it runs before anything else is imported.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]

# Spark's own lists: org.apache.spark.launcher.SparkSubmitOptionParser, opts and switches.
# Only the first matters here: what follows one of these is its value, never the job file.
TAKES_VALUE = frozenset(
    (
        "--archives --class --conf -c --deploy-mode --driver-class-path --driver-cores "
        "--driver-default-class-path --driver-java-options --driver-library-path "
        "--driver-memory --exclude-packages --executor-cores --executor-memory "
        "--extra-properties-file --files --jars --keytab --kill --master --name "
        "--num-executors --packages --principal --properties-file --proxy-user --py-files "
        "--queue --remote --repositories --status --total-executor-cores"
    ).split()
)
# With these, spark-submit does something else than to run a job.
NEEDS_NO_JOB = frozenset({"--kill", "--status", "--version", "--help", "-h"})

PEX = "mllib_ext.pex"


def fail(message: str) -> NoReturn:
    print(f"spark-submit.sh: {message}", file=sys.stderr)
    sys.exit(2)


# ------------------------------------------------------------------ the arguments


@dataclass(frozen=True)
class Arguments:
    """What was typed: ``[spark-submit options] [job [job options]]``."""

    options: tuple[tuple[str, str | None], ...]  # (name, value), in their order
    job: str | None
    job_options: tuple[str, ...]

    @classmethod
    def parse(cls, words: list[str]) -> Arguments:
        options: list[tuple[str, str | None]] = []
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            if name in TAKES_VALUE and equals:
                options.append((name, value))
            elif word in TAKES_VALUE:
                following = next(rest, None)
                if following is None:
                    fail(f"the option {word} needs a value")
                options.append((word, following))
            elif word.startswith("-"):
                options.append((word, None))
            else:
                return cls(tuple(options), word, tuple(rest))
        return cls(tuple(options), None, ())

    def has(self, *names: str) -> bool:
        return any(name in names for name, _ in self.options)

    def value(self, name: str) -> str | None:
        """The last value of an option: spark-submit lets the last one win."""
        return next((v for n, v in reversed(self.options) if n == name), None)

    def setting(self, key: str, option: str | None = None) -> str | None:
        """A Spark setting, looked for where spark-submit does and in its order."""
        found = self.value(option) if option else None
        if found is not None:
            return found
        for name, value in reversed(self.options):
            if name in ("--conf", "-c") and value and value.startswith(key + "="):
                return value[len(key) + 1 :]
        return self._properties().get(key)

    def _properties(self) -> dict[str, str]:
        given = self.value("--properties-file")
        defaults = Path(os.environ["SPARK_CONF_DIR"], "spark-defaults.conf")
        files = [Path(given)] if given else [defaults]
        if given and self.has("--load-spark-defaults"):
            files = [defaults, Path(given)]
        found: dict[str, str] = {}
        for file in files:
            if file.is_file():
                for line in file.read_text(encoding="utf-8").splitlines():
                    match = re.match(r"\s*([^#!\s=:][^\s=:]*)\s*[=:\s]\s*(.*?)\s*$", line)
                    if match:
                        found[match[1]] = match[2]
        return found

    def without(self, *names: str) -> Arguments:
        return replace(self, options=tuple(o for o in self.options if o[0] not in names))

    def with_option(self, name: str, value: str) -> Arguments:
        return replace(self, options=(*self.options, (name, value)))

    def with_file(self, option: str, key: str, path: str) -> Arguments:
        """One more file in a comma-separated list, after those the user gave."""
        given = self.setting(key, option)
        files = f"{given},{path}" if given else path
        return self.without(option).with_option(option, files)

    def words(self) -> list[str]:
        options = [word for option in self.options for word in option if word is not None]
        return [*options, *([self.job] if self.job else []), *self.job_options]


def find_job(job: str) -> str:
    """The job file's full path: as seen from here, or else from the repository."""
    if re.match(r"[a-z0-9+.-]+:", job, re.IGNORECASE):
        return job  # a URI: Spark fetches it
    for place in (Path.cwd(), ROOT):
        if (place / job).is_file():
            return str(place / job)
    fail(f"there is no job file {job}, neither in {Path.cwd()} nor in {ROOT}")


# ------------------------------------------------------------------ what executors get


def cache(name: str, key: str) -> Path:
    """Where a file of this content goes.

    A file is never changed once it is there: a running job may still read from it. The paths
    of --py-files are split at commas and read as URIs, so a checkout under a path with such
    characters has its cache elsewhere.
    """
    homes = [ROOT / "build", Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")]
    for home in homes:
        if not re.search(r"[,#?%:\\]", str(home)):
            return home / "mllib_ext" / key / name
    fail(f"Spark cannot read a package from {homes[0]} nor from {homes[1]}: set XDG_CACHE_HOME")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def package_zip() -> Path:
    """The package as a zip: the same bytes for the same source, so that it is its own cache key."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROOT / "mllib_ext").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                entry = zipfile.ZipInfo(path.relative_to(ROOT).as_posix())  # dated 1980
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    path = cache("mllib_ext.zip", hashlib.sha256(content).hexdigest()[:16])
    if not path.exists():
        write(path, content)
    return path


def requirements(section: str, key: str) -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return [line for line in setup[section][key].splitlines() if line.strip()]


def dependencies_pex() -> Path:
    """Where the PEX goes that holds the dependencies.

    Without pyspark, which executors bring along in the version of their own JVM, and without
    this package, which comes as a zip and changes more often.
    """
    needed = [r for r in requirements("options", "install_requires") if "pyspark" not in r]
    key = hashlib.sha256(repr((needed, sys.version)).encode()).hexdigest()[:16]
    return cache(PEX, key)


def build_pex(path: Path) -> None:
    if path.exists():
        return
    if find_spec("pex") is None:
        if os.environ.get("MLLIB_EXT_VENV"):
            fail(f"{sys.prefix} (MLLIB_EXT_VENV) lacks pex, which YARN and Kubernetes need")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements("options.extras_require", "cluster")], check=True)
    needed = [r for r in requirements("options", "install_requires") if "pyspark" not in r]
    print(f"spark-submit.sh: packing the dependencies for executors into {path}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f"building-{os.getpid()}.pex")
    # The fallback lets it see the pyspark that Spark puts on PYTHONPATH.
    command = [sys.executable, "-m", "pex", *needed, "--inherit-path=fallback", "-o", str(building)]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        fail("pex could not pack the dependencies")
    os.replace(building, path)


# ------------------------------------------------------------------ the command


def prepare(given: Arguments) -> tuple[list[str], dict[str, str], Path | None]:
    """The command, the environment variables to set for it, and the PEX that it needs."""
    venv_python = os.environ["PYSPARK_PYTHON"]
    env = {name: os.environ[name] for name in ("SPARK_HOME", "SPARK_CONF_DIR")}
    if "JAVA_HOME" in os.environ:
        env["JAVA_HOME"] = os.environ["JAVA_HOME"]
    env |= {"PYSPARK_PYTHON": venv_python, "PYSPARK_DRIVER_PYTHON": venv_python}
    pex = None

    master = given.setting("spark.master", "--master") or os.environ.get("MASTER", "local[*]")
    if given.has("--remote"):
        pass  # Spark Connect: the server has its own conf and its own executors
    elif master.startswith("local"):
        # Nothing of a local run needs to be reached from outside, and a laptop whose host name
        # resolves to nothing, or to a VPN that is down, must not stop it.
        env["SPARK_LOCAL_IP"] = os.environ.get("SPARK_LOCAL_IP", "127.0.0.1")

    if given.job and given.job.endswith(".py"):
        given = given.with_file("--py-files", "spark.submit.pyFiles", str(package_zip()))
        on_cluster = master == "yarn" or master.startswith("k8s://")
        if on_cluster and given.setting("spark.pyspark.python") is None:
            pex = dependencies_pex()
            given = given.with_file("--files", "spark.files", str(pex))
            env["PYSPARK_PYTHON"] = f"./{PEX}"
            # PEX unpacks itself on first use: into the executor's directory, not a home
            # directory that may not be there.
            given = given.with_option("--conf", "spark.executorEnv.PEX_ROOT=.pex")
            if given.setting("spark.submit.deployMode", "--deploy-mode") == "cluster":
                # The driver runs there too. YARN would take these variables from here.
                del env["PYSPARK_DRIVER_PYTHON"]
                given = given.with_option("--conf", f"spark.pyspark.python=./{PEX}")
                driver_env = "yarn.appMasterEnv" if master == "yarn" else "kubernetes.driverEnv"
                given = given.with_option("--conf", f"spark.{driver_env}.PEX_ROOT=.pex")

    command = [str(Path(env["SPARK_HOME"], "bin", "spark-submit")), *given.words()]
    return command, env, pex


def show(command: list[str], env: dict[str, str]) -> None:
    words = ["env"]
    for name in ("JAVA_HOME", "PYSPARK_DRIVER_PYTHON"):
        if name not in env:
            words += ["-u", name]
    print(shlex.join([*words, *(f"{k}={v}" for k, v in env.items()), *command]))


# ------------------------------------------------------------------ the run


SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


class EndedBySignal(Exception):
    """Raised out of the wait for Spark when everything has to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Run:
    """spark-submit in a session of its own.

    The terminal sends Ctrl-C to every process of its foreground group. It would end Spark's JVM,
    and with it what the job could still save; in another session only we receive it, and pass it
    on to the job's Python.
    """

    def __init__(self, command: list[str], env: dict[str, str], job: str):
        self.job = os.path.basename(job)
        self.interrupts = 0

        def in_child() -> None:
            # A shell that starts us in the background has SIGINT ignored, and children inherit it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

        # No signal may end us between the start of the process and the handlers that end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # Through `exec`, the process of spark-submit becomes the JVM: the driver's parent.
        self.process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,  # Spark gives the job an empty pipe in any case
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=in_child,
        )
        signal.signal(signal.SIGINT, self._interrupted)
        for number in SIGNALS - {signal.SIGINT}:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._ended)
        self.messages = threading.Thread(target=self._forward_stderr, daemon=True)
        self.messages.start()

    def wait(self) -> int:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            code = self.process.wait()
        except EndedBySignal as ended:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            code = self._end(ended.number)
        self._sweep()
        self.messages.join(timeout=1)
        return code if code >= 0 else 128 - code

    def _interrupted(self, number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1
        driver = self._driver()
        if driver is None or self.interrupts > 2:
            raise EndedBySignal(number)
        try_kill(driver, signal.SIGINT)

    def _ended(self, number: int, _frame: FrameType | None) -> None:
        raise EndedBySignal(number)

    def _end(self, number: int) -> int:
        """The job's Python first, so that it can clean up while Spark is there."""
        driver = self._driver()
        if driver is not None:
            try_kill(driver, signal.SIGTERM)
            if within(10, lambda: self.process.poll() is not None):
                return self.process.returncode
        self.process.terminate()
        if not within(10, lambda: self.process.poll() is not None):
            self.process.kill()
        self.process.wait()
        return 128 + number

    def _sweep(self) -> None:
        """Nothing outlives the run, not even when the JVM was killed from outside."""
        for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            if within(patience, lambda: not list(self._session())):
                return
            for pid in self._session():
                try_kill(pid, number)

    def _session(self) -> Iterator[int]:
        for pid, state, _, session in processes():
            if session == self.process.pid and state != "Z":
                yield pid

    def _driver(self) -> int | None:
        """The job's Python: the child of the JVM whose script is the job."""
        for pid, _, parent, _ in processes():
            if parent == self.process.pid:
                words = command_line(pid)
                if any(os.path.basename(word) == self.job for word in words[1:3]):
                    return pid
        return None

    def _forward_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            # Java says so at every start; Spark asks for the module, and nobody can act on it.
            if line.strip() != b"WARNING: Using incubator modules: jdk.incubator.vector":
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()


def within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def try_kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def processes() -> Iterator[tuple[int, str, int, int]]:
    """(pid, state, parent, session) of every process."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:
                continue  # it has ended
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            yield int(entry.name), state, int(parent), int(session)


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def terminal_for_driver(env: dict[str, str]) -> dict[str, str]:
    """Spark gives the driver's Python a pipe for stdout and stderr; a progress bar needs the
    terminal. Spark starts the driver through spark-submit.sh, which opens it again."""
    wanted = {}
    for name, stream in (("MLLIB_EXT_STDOUT", sys.stdout), ("MLLIB_EXT_STDERR", sys.stderr)):
        if stream.isatty():
            wanted[name] = os.ttyname(stream.fileno())
    if not wanted or "PYSPARK_DRIVER_PYTHON" not in env:
        return env
    wanted["MLLIB_EXT_DRIVER_PYTHON"] = env["PYSPARK_DRIVER_PYTHON"]
    return {**env, **wanted, "PYSPARK_DRIVER_PYTHON": str(ROOT / "spark-submit.sh")}


def main(words: list[str]) -> int:
    if words[0] == "--spark-help":
        words = ["--help"]
    given = Arguments.parse(words)
    dry_run = given.has("--dry-run")
    given = given.without("--dry-run")
    if given.job is None and not given.has(*NEEDS_NO_JOB):
        fail("no job file among the arguments; ./spark-submit.sh --help")
    if given.job is not None and given.job.endswith(".py"):
        given = replace(given, job=find_job(given.job))

    command, env, pex = prepare(given)
    if dry_run:
        show(command, env)
        return 0
    if pex is not None:
        build_pex(pex)
    inherited = {k: v for k, v in os.environ.items() if k != "PYSPARK_DRIVER_PYTHON"}
    env = {**inherited, **terminal_for_driver(env)}
    if given.job is None:
        os.execve(command[0], command, env)
    return Run(command, env, given.job).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
