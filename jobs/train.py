"""Train a model as a config file says, and write it with its metrics, config and history.

./spark-submit.sh jobs/train.py --config conf/jobs/digits.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import TrainConfig
from mllib_ext.job.training import train


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(train, TrainConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
