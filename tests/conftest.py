"""One Spark session for the whole suite, and stage functions that workers can run.

Workers do not see pytest's import path. So the functions of a test module travel with the task,
by value: a stage may stand right beside the test that uses it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pyspark.cloudpickle import register_pickle_by_value
from pyspark.sql import SparkSession

import mllib_ext

ROOT = Path(mllib_ext.__path__[0]).parent


def pytest_collection_finish(session):
    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        register_pickle_by_value(module)


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """A session with two slots, its local files in a directory of its own."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    # The JVM hands this on to the workers: they find the package wherever pytest was started.
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, known)])
    session = (
        SparkSession.builder.master("local[2]")
        .appName("mllib_ext tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.local.dir", str(tmp_path_factory.mktemp("spark")))
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.python.unix.domain.socket.enabled", "true")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
