"""Predict with a saved model, and write the predictions.

./spark-submit.sh jobs/predict.py --config conf/jobs/adult-predict.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import PredictConfig
from mllib_ext.job.prediction import predict


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(predict, PredictConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
