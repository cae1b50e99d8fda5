"""Search for the best Params of an estimator, train it with them, and write it with the table.

./spark-submit.sh jobs/tune.py --config conf/jobs/adult-tune.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import TuneConfig
from mllib_ext.job.tuning import tune


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(tune, TuneConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
