"""Find nearest neighbours: build an index, join rows with those nearest to them, or make a graph.

./spark-submit.sh jobs/neighbors.py --config conf/jobs/digits-neighbors.yaml
"""

import sys

from mllib_ext.job import cli
from mllib_ext.job.config import NeighborsConfig
from mllib_ext.job.neighbors import neighbors


def main(argv: list[str] | None = None) -> int:
    """Run the job; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    return cli.run(neighbors, NeighborsConfig, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
