"""Check, join, sample, encode and partition data, and write it as Parquet.

./spark-submit.sh jobs/prepare.py --config conf/jobs/nyc-taxi-prepare.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import PrepareConfig
from mllib_ext.job.preparation import prepare


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(prepare, PrepareConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
