"""Measure how good the predictions of a saved model are.

./spark-submit.sh jobs/evaluate.py --config conf/jobs/adult-evaluate.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import EvaluateConfig
from mllib_ext.job.evaluation import evaluate


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(evaluate, EvaluateConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
