"""Watch a training run and steer it while it runs.

A run directory (``estimator.setRunDir(path)``) records every round; :func:`read_run` gives it back
as a DataFrame. ``estimator.fitAsync(df)`` returns a :class:`LiveRun` to steer the fit by, and
``python -m mllib_ext.monitor`` does both from a terminal. All of it is callbacks and their actions:
no algorithm knows of it. Imports nothing above :mod:`mllib_ext.storage` and the loop.
"""

from mllib_ext.monitor.handle import LiveRun
from mllib_ext.monitor.run import Run, find_runs, read_run
from mllib_ext.monitor.trackers import MLflow, TensorBoard

__all__ = ["LiveRun", "MLflow", "Run", "TensorBoard", "find_runs", "read_run"]
