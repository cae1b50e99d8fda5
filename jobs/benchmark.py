"""Compare mllib_ext with pyspark.ml and scikit-learn on the same data and cores.

./spark-submit.sh --master 'local[2]' --driver-memory 8g jobs/benchmark.py --output bench.json
./spark-submit.sh --master 'local[2]' jobs/benchmark.py --path FILE --format libsvm --tasks logistic
./spark-submit.sh --master 'local[2]' jobs/benchmark.py --path FILE --format libsvm --copies 10 \\
    --partitions 8 --tasks sgd --plot sgd.png
./spark-submit.sh --master 'local[2]' --driver-memory 8g jobs/benchmark.py --repeats 1 \\
    --tasks neighbors-approximate --plot recall.png
"""

import argparse
import sys
from functools import partial, reduce
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.job import benchmark, cli, compare_neighbors, compare_networks, comparisons
from mllib_ext.job.benchmark_data import Problem, generate

# The task that needs files.
IMAGES = "neighbors-fashion-mnist"


def main(argv: list[str] | None = None) -> int:
    """Run the comparisons; the exit code: 0, 1 (failed), 2 (misused), 130 (interrupted)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_positive, default=500_000)
    parser.add_argument("--features", type=_positive, default=100)
    parser.add_argument("--classes", type=int, default=2, help="0 for a number as the label")
    parser.add_argument("--density", type=float, default=1.0, help="below 1: sparse vectors")
    parser.add_argument("--correlation", type=float, default=0.9, help="of neighbouring features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", help="data to read in place of generated ones")
    parser.add_argument("--format", default="parquet", help="of --path: parquet, libsvm, ...")
    parser.add_argument("--copies", type=_positive, default=1, help="how often --path is read")
    parser.add_argument("--partitions", type=_positive, default=2)
    parser.add_argument("--repeats", type=_positive, default=5)
    parser.add_argument(
        "--tasks", nargs="+", choices=[*comparisons.TASKS, IMAGES], default=[*comparisons.TASKS]
    )
    parser.add_argument(
        "--fashion-mnist",
        type=Path,
        help=f"directory of IDX files and true neighbours, for tasks {IMAGES} and networks",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help=f"draw what the last of these tasks found here: {[*comparisons.DRAWN]}",
    )
    parser.add_argument("--output", type=Path, help="write all figures here, as JSON")

    def refuse(options: argparse.Namespace) -> None:
        if IMAGES in options.tasks and not options.fashion_mnist:
            parser.error(f"task {IMAGES}: expected --fashion-mnist beside it, found none")
        if options.classes < 0 or options.classes == 1:
            parser.error(f"argument --classes: expected 0, or 2 or more, found {options.classes}")
        for name in ("output", "plot"):
            path = getattr(options, name)
            if path and not path.parent.is_dir():
                parser.error(f"argument --{name}: expected a directory, found no {path.parent}")

    return cli.run_without_config(compare, parser, argv, name="mllib_ext benchmark", refuse=refuse)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


def compare(spark: SparkSession, options: argparse.Namespace) -> str:
    """The comparisons that were asked for, as a table."""
    problem = Problem(
        options.rows,
        options.features,
        options.classes,
        options.density,
        options.correlation,
        options.seed,
    )
    if options.path:
        df = spark.read.format(options.format).load(options.path)
        df = reduce(DataFrame.union, [df] * options.copies).repartition(options.partitions)
        # LIBSVM files call the classes -1 and 1.
        df = df.withColumn("label", F.when(F.col("label") == -1, 0.0).otherwise(F.col("label")))
    else:
        df = generate(spark, problem, options.partitions)
    df = df.cache()
    if set(options.tasks) - {IMAGES, *comparisons.OWN_DATA}:
        df.count()
    drawn = {name: partial(task, plot=options.plot) for name, task in comparisons.DRAWN.items()}
    runs = {name: [partial(task, spark, df)] for name, task in (comparisons.TASKS | drawn).items()}
    if images := options.fashion_mnist:
        runs[IMAGES] = [partial(compare_neighbors.compare_fashion_mnist, spark, images)]
        runs["networks"].append(partial(compare_networks.compare_fashion_mnist, spark, images))
    found = []
    for run in [run for task in options.tasks for run in runs[task]]:
        for comparison in run(options.repeats):
            benchmark.tell(comparison)
            found.append(comparison)
    if options.output:
        data = {"path": options.path} if options.path else vars(problem)
        options.output.write_text(benchmark.as_json(spark, data, found))
    return benchmark.table(found)


if __name__ == "__main__":
    sys.exit(main())
