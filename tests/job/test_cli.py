"""What every job shares: errors as exit codes and lines, and what they leave as it was."""

import logging
import os
import signal
import sys
import warnings

import pytest
from pyspark.sql import functions as F

from mllib_ext.job import cli
from mllib_ext.job.config import TrainConfig
from mllib_ext.job.log import logged
from mllib_ext.optimizers.loop import DivergenceError

SMALLEST = """
input: {format: sklearn, dataset: iris}
estimator: {class: pyspark.ml.classification.LogisticRegression}
"""


@pytest.fixture
def run(spark, tmp_path):
    """Run a function as a job, in the session of the tests."""
    file = tmp_path / "job.yaml"
    file.write_text(SMALLEST)
    return lambda job, *argv: cli.run(job, TrainConfig, ["--config", str(file), *argv])


def raising(error):
    def job(spark, config):
        raise error

    return job


@pytest.mark.parametrize(
    "error",
    [
        DivergenceError("training diverged in round 3 with step size 9"),
        FileExistsError("output.path: expected a new directory, found one"),
        ValueError("label column 'y': expected one of ['x'], found no such column"),
        TypeError("label column 'y': expected a numeric type, found string"),
    ],
)
def test_an_expected_error_is_one_line(run, capsys, error):
    assert run(raising(error)) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_error_of_spark_about_its_input_is_one_line(run, capsys):
    assert run(lambda spark, config: spark.range(3).select("idd")) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "`idd` cannot be resolved" in err
    assert "SQLSTATE" not in err
    assert err.count("\n") == 1


def test_an_unexpected_error_keeps_its_python_traceback(run, capsys):
    assert run(raising(ValueError("not enough values to unpack"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in raising" not in err
    assert "ValueError: not enough values to unpack" in err


def test_of_java_only_the_message_is_shown(run, capsys):
    def job(spark, config):
        return str(spark.range(1).select(F.raise_error(F.lit("bad luck"))).collect())

    assert run(job) == 1
    err = capsys.readouterr().err
    assert "bad luck" in err
    assert "at org.apache" not in err


def test_an_interrupt_is_130(run, capsys):
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_termination_unwinds_and_is_143(run, capsys):
    unwound = []

    def job(spark, config):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run(job) == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("argv", [[], ["--confg", "x"], ["--config"]])
def test_a_wrong_command_line_is_2(capsys, argv):
    assert cli.run(raising(AssertionError()), TrainConfig, argv) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_is_0(capsys):
    job = raising(AssertionError())
    assert cli.run(job, TrainConfig, ["--help"], description="Train a model.") == 0
    assert "Train a model." in capsys.readouterr().out


def test_a_wrong_config_is_2_and_says_which_file(run, capsys, tmp_path):
    assert run(raising(AssertionError()), "--set", "labl=x") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}/job.yaml: labl: expected one of ")


def test_a_dry_run_prints_the_config_and_starts_nothing(run, capsys):
    assert run(raising(AssertionError()), "--dry-run", "--output", "there") == 0
    out = capsys.readouterr().out
    assert "path: there" in out
    assert "seed: 1" in out


def test_a_session_that_was_there_before_goes_on(run, spark):
    name = spark.conf.get("spark.app.name")
    assert run(lambda spark, config: "done") == 0
    assert spark.range(2).count() == 2
    assert spark.conf.get("spark.app.name") == name


def test_settings_that_a_running_session_cannot_take_are_one_warning(run, spark, capsys):
    before = spark.conf.get("spark.sql.shuffle.partitions")
    argv = ["--set", "spark.executor.memory=9g", "--set", "spark.sql.shuffle.partitions=5"]
    try:
        assert run(lambda s, _: s.conf.get("spark.sql.shuffle.partitions"), *argv) == 0
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    out, err = capsys.readouterr()
    assert out == "5\n"
    assert "warning: spark.executor.memory is left as it is" in err


def test_warnings_are_lines_and_logging_is_left_as_it_was(run, capsys):
    package = logging.getLogger("mllib_ext")
    before = package.level, list(package.handlers), warnings.showwarning

    def job(spark, config):
        warnings.simplefilter("always")
        warnings.warn("not converged in maxIter = 3 iterations", UserWarning, stacklevel=1)
        return ""

    assert run(job) == 0
    err = capsys.readouterr().err
    assert err[9:] == "warning: not converged in maxIter = 3 iterations\n"  # after the time
    assert (package.level, list(package.handlers), warnings.showwarning) == before


def test_a_log_line_goes_to_what_standard_error_is_now(monkeypatch, capsys):
    import io

    with logged():
        other = io.StringIO()
        monkeypatch.setattr(sys, "stderr", other)
        logging.getLogger("mllib_ext.job").info("hello")
        assert other.getvalue().endswith("hello\n")
