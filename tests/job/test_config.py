"""Config files: everything that is wrong is said at once, in plain words, before Spark starts."""

import re

import pytest

from mllib_ext.job.config import TrainConfig, load
from mllib_ext.job.config.reference import JOBS
from mllib_ext.job.problems import ConfigError
from mllib_ext.job.yamlfile import dump, parse

ESTIMATOR = "estimator: {class: pyspark.ml.classification.LogisticRegression}\n"
SMALLEST = "input: {format: sklearn, dataset: iris}\n" + ESTIMATOR


@pytest.fixture
def problems(tmp_path):
    """The problems of a config given as text, and of ``--set`` on top of it."""

    def of(text, *overrides):
        file = tmp_path / "job.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(TrainConfig, str(file), overrides)
        return list(caught.value.problems)

    return of


@pytest.fixture
def config(tmp_path):
    def of(text, *overrides, output=None):
        file = tmp_path / "job.yaml"
        file.write_text(text)
        return load(TrainConfig, str(file), overrides, output)

    return of


def test_the_smallest_config_has_defaults_for_the_rest(config):
    job = config(SMALLEST)
    assert (job.name, job.output.path) == ("job", "output/job")
    assert (job.features, job.label, job.weight) == ("features", "label", None)
    assert (job.split.test, job.split.seed) == (0.2, 1)


def test_the_resolved_config_reads_back_as_itself(config, tmp_path):
    job = config(SMALLEST + "features: [a, b]\nspark: {sql.shuffle.partitions: 4}")
    (tmp_path / "again.yaml").write_text(dump(job.resolved()))
    assert load(TrainConfig, str(tmp_path / "again.yaml")) == job

    # a default that the estimator has no use for is no key that its writer gave
    clusters = "input: {format: sklearn, dataset: iris}\n"
    clusters += "estimator: {class: pyspark.ml.clustering.KMeans}"
    assert TrainConfig.model_validate(config(clusters).resolved()).label_column is None


def test_secrets_are_not_written_into_the_resolved_config(config):
    job = config(
        "input: {format: jdbc, options: {user: me, password: hunter2}}\n"
        "spark: {spark.hadoop.fs.s3a.secret.key: hunter2}\n" + ESTIMATOR
    )
    assert job.input[0].options["password"] == "hunter2"
    assert "hunter2" not in dump(job.resolved())
    assert job.resolved()["input"]["options"]["user"] == "me"


def test_every_section_and_key_is_described():
    def fields(model):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(part, "model_fields"):
                    yield from fields(part)

    found = [field for model in JOBS.values() for field in fields(model)]
    assert len(found) > 60
    assert [name for name, field in found if not field.description] == []


# --- problems --------------------------------------------------------------------------------


def test_all_problems_of_a_file_are_listed_at_once(problems):
    found = problems(
        "nam: x\n"
        "input: {format: csv, pth: x}\n"
        "split: {test: 2}\n"
        "estimator:\n"
        "  class: pyspark.ml.classification.LogisticRegression\n"
        "  params: {regParm: 1}\n"
    )
    assert [line.partition(":")[0] for line in found] == [
        "input.pth",
        "split.test",
        "estimator.params.regParm",
        "nam",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALLEST + "lable: y", "lable: expected one of .*, found no such key .*'label'"),
        (SMALLEST + "split: {sed: 1}", r"split\.sed: .*no such key \(did you mean 'seed'\?\)"),
        (SMALLEST + "split: {test: 1}", r"split\.test: expected a number below 1.*, found 1"),
        (SMALLEST + "split: {test: a}", r'split\.test: expected a number, found "a"'),
        (SMALLEST + "split: {seed: 1.5}", r"split\.seed: expected a whole number, found 1\.5"),
        (SMALLEST + "split: 3", "split: expected a mapping, found 3"),
        (SMALLEST + "features: 3", "features: expected text or a list of text, found 3"),
        (SMALLEST + "features: []", "features: expected text or a list of text, found a list"),
        (SMALLEST + "progress: loud", "progress: expected one of .*'plain'.*, found \"loud\""),
        (SMALLEST + "output: {overwrite: 1}", r"output\.overwrite: expected true or false, found"),
        (SMALLEST + "spark: {a: [1]}", r"spark\.a: expected text, a number.*, found a list of 1"),
        (ESTIMATOR, "input: expected a value, found nothing"),
        ("input: []\n" + ESTIMATOR, "input: expected at least 1 entry, found a list of 0"),
        ("input: {format: sklearn}\n" + ESTIMATOR, r"input\.dataset: expected one of digits"),
        (
            "input: {format: sklearn, dataset: iriss}\n" + ESTIMATOR,
            r"input\.dataset: expected one of .*'iris'.*, found \"iriss\"",
        ),
        (
            "input: {format: sklearn, dataset: iris, path: x}\n" + ESTIMATOR,
            r"input\.path: expected no such key with format: sklearn",
        ),
        ("input: {format: csv}\n" + ESTIMATOR, r"input\.path: expected where the csv files are"),
        (
            "input: [{format: csv, path: x}, {format: csv, paht: x}]\n" + ESTIMATOR,
            r"input\.1\.paht: .*did you mean 'path'",
        ),
        (SMALLEST + "evaluation: [acuracy]", r"evaluation\.0: .*did you mean 'accuracy'"),
        (SMALLEST + "evaluation: [rmse]", r"evaluation\.0: expected a metric of classification"),
    ],
)
def test_a_wrong_value_names_its_key_what_was_expected_and_what_was_found(problems, text, expected):
    (line,) = problems(text)
    assert re.search(expected, line)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("pyspark.ml.classification.LogisticRegresion", "did you mean 'LogisticRegression'"),
        ("pyspark.ml.clasification.LinearSVC", "no module .*did you mean 'classification'"),
        ("LogisticRegression", "expected the dotted path of a pyspark.ml Estimator"),
        ("os.path.join", "found os.path.join, which is none"),
        ("pyspark.ml.feature.VectorAssembler", "VectorAssembler, which is none"),
        ("pyspark.ml.base.Estimator", "which is none"),
    ],
)
def test_a_class_that_is_no_estimator_is_refused(problems, estimator, expected):
    (line,) = problems(SMALLEST, f"estimator.class={estimator}")
    assert line.startswith("estimator.class: expected the dotted path")
    assert re.search(expected, line)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("maxItr=5", "expected a Param of LogisticRegression, found no .*did you mean 'maxIter'"),
        ("maxIter=many", 'expected a whole number, found "many"'),
        ("maxIter=", "expected a whole number, found nothing"),
        ("regParam=[1]", "expected a number, found a list of 1"),
        ("fitIntercept=0", "expected true or false, found 0"),
        ("labelCol=y", "expected the key 'label' of the config in its place"),
    ],
)
def test_params_are_checked_against_the_class(problems, setting, expected):
    (line,) = problems(SMALLEST, f"estimator.params.{setting}")
    assert line.startswith(f"estimator.params.{setting.partition('=')[0]}: ")
    assert re.search(expected, line)


def test_stages_are_checked_as_the_estimator_is(problems):
    stages = (
        "stages:\n"
        "  - {class: pyspark.ml.feature.StandardScaler, params: {withMeen: true}}\n"
        "  - {class: pyspark.ml.feature.PCB}\n"
    )
    first, second = problems(SMALLEST + stages)
    assert first.startswith("stages.0.params.withMeen: ")
    assert "did you mean 'withMean'" in first
    assert second.startswith("stages.1.class: ")
    assert "did you mean 'PCA'" in second


def test_a_label_or_weight_that_the_estimator_does_not_take_is_refused(problems):
    found = problems(
        "input: {format: sklearn, dataset: iris}\nlabel: y\n"
        "estimator: {class: pyspark.ml.clustering.LDA}"
    )
    assert found == ['label: expected no label: LDA takes none, found "y"']


def test_log_loss_without_probabilities_is_refused(problems):
    (line,) = problems(
        SMALLEST, "estimator.class=pyspark.ml.classification.LinearSVC", "evaluation=[logLoss]"
    )
    assert "expected a metric without probabilities: LinearSVC gives none" in line


# --- the other jobs --------------------------------------------------------------------------

OURS = SMALLEST.replace("pyspark.ml", "mllib_ext")
TUNE = SMALLEST + "search: {params: {regParam: [0.1, 1.0]}}\n"
RANDOM = SMALLEST + "search: {method: random, params: "
PREPARE = "input: {format: parquet, path: x}\n"
PREDICT = PREPARE + "model: m\n"


@pytest.mark.parametrize(
    ("job", "text", "expected"),
    [
        ("train", SMALLEST + "weight: balanced\nfeatures: x", None),
        (
            "train",
            "input: {format: sklearn, dataset: iris}\nweight: balanced\n"
            "estimator: {class: pyspark.ml.regression.LinearRegression}",
            "weight: expected a column: LinearRegression has no classes to balance",
        ),
        (
            "train",
            SMALLEST + "encode: {numeric: [a], impute: {b: medium}}",
            r"encode\.impute\.b: expected one of 'mean', 'median' or 'mode', found \"medium\"",
        ),
        (
            "train",
            SMALLEST + "encode: {categorical: [a, b], index: [b]}",
            r'encode\.categorical: expected each column once in all of encode, found "b"',
        ),
        ("tune", TUNE, None),
        ("tune", SMALLEST, "search: expected a value, found nothing"),
        (
            "tune",
            SMALLEST + "search: {params: {regParm: [1.0]}}",
            r"search\.params\.regParm: expected a Param of .*, found no .*'regParam'",
        ),
        (
            "tune",
            SMALLEST + "search: {params: {regParam: [1.0, x]}}",
            r'search\.params\.regParam\.1: expected a number, found "x"',
        ),
        (
            "tune",
            SMALLEST + "search: {params: {regParam: {from: 0.1, to: 1.0}}}",
            r"search\.params\.regParam: expected a list of values with search.method: grid",
        ),
        (
            "tune",
            RANDOM + "{regParam: {from: 0.0, to: 1, scale: log}}}",
            r"params\.regParam\.from: expected a number above 0 with scale: log, found 0\.0",
        ),
        (
            "tune",
            RANDOM + "{regParam: {from: 2, till: 1}}}",
            r"\.regParam\.to: expected a value.*\n.*\.regParam\.till: .*no such key",
        ),
        (
            "tune",
            SMALLEST + "search: {params: {regParam: 3}}",
            r"search\.params\.regParam: expected a list of values, or .*, found 3",
        ),
        (
            "tune",
            SMALLEST + "search: {params: {stages.0.k: [1]}}",
            r"search\.params\.stages\.0\.k: expected no stages to search",
        ),
        (
            "tune",
            SMALLEST + "search: {params: {labelCol: [y]}}",
            r"search\.params\.labelCol: expected the key 'label' of the config in its place",
        ),
        (
            "tune",
            TUNE.replace("search: {", "search: {metric: rmse, folds: 2, "),
            r"search\.metric: expected a metric of classification",
        ),
        (
            "tune",
            TUNE.replace("search: {", "search: {folds: 1, "),
            r"folds: .* at least 2, found 1",
        ),
        (
            "tune",
            OURS + "search: {params: {solver: [auto, foo], maxIter: [5]}}",
            r"search\.params\.solver: expected .*, found .*foo",
        ),
        (
            "tune",
            OURS.replace("Regression}", "Regression, params: {momentum: 0.9}}")
            + "search: {params: {solver: [sgd]}}",
            None,
        ),
        (
            "tune",
            TUNE.replace("search: {", "search: {seed: -1, "),
            r"search\.seed: expected a number of at least 0, found -1",
        ),
        (
            "train",
            SMALLEST + "split: {seed: 99999999999999999999}",
            r"split\.seed: expected a number below 9223372036854775808",
        ),
        ("train", SMALLEST + "page: maybe", r'^page: expected true, false or auto, found "maybe"$'),
        ("train", SMALLEST + "1: x", r"^1: expected text as the key, found 1$"),
        ("predict", PREDICT + "columns: [a, b, a]", r"columns\.0: expected each column once"),
        ("predict", PREDICT + "output: {format: csv, files: 1}", None),
        ("predict", PREPARE, "model: expected a value, found nothing"),
        ("predict", PREDICT + "output: {formt: csv}", "output.formt: .*did you mean 'format'"),
        ("evaluate", PREDICT + "lable: y", "lable: .*did you mean 'label'"),
        ("prepare", PREPARE, None),
        ("prepare", PREPARE + "join: {input: {format: csv, pth: x}, by: a}", r"join\.input\.pth: "),
        (
            "prepare",
            PREPARE + "join: [{input: {format: csv}, by: a, how: outer}]",
            r"join\.0\.input\.path: expected where.*\njoin\.0\.how: expected one of 'inner'",
        ),
        (
            "prepare",
            PREPARE + "partition: {method: hash, count: 0}",
            r"partition\.count: expected a number of at least 1, found 0",
        ),
        (
            "prepare",
            PREPARE + "partition: {method: hash, count: 2}",
            r"partition\.columns: expected columns with method: hash, found nothing",
        ),
        (
            "prepare",
            PREPARE + "partition: {method: round-robin, count: 2, columns: [a]}",
            r"partition\.columns: expected none with method: round-robin",
        ),
        (
            "prepare",
            PREPARE + "balance: {column: a, method: up}",
            r"balance\.method: expected one of",
        ),
        (
            "prepare",
            PREPARE + "quarantine: {most: 2}",
            r"quarantine\.most: .* at most 1.*, found 2",
        ),
    ],
)
def test_the_config_of_every_job_names_what_is_wrong(tmp_path, job, text, expected):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    if expected is None:
        config = load(JOBS[job], str(file))
        assert JOBS[job].model_validate(config.resolved()) == config
        return
    with pytest.raises(ConfigError) as caught:
        load(JOBS[job], str(file))
    assert re.search(expected, "\n".join(caught.value.problems))


def test_a_grid_of_more_candidates_than_anybody_waits_for_is_refused(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(TUNE)
    values = ", ".join(map(str, range(1, 41)))
    grid = [f"search.params.maxIter=[{values}]", f"search.params.aggregationDepth=[{values}]"]
    with pytest.raises(ConfigError, match=r"expected at most 1000 combinations.*found 3200"):
        load(JOBS["tune"], str(file), grid)


def test_secrets_of_joined_inputs_are_masked_too(tmp_path):
    file = tmp_path / "job.yaml"
    source = "{format: jdbc, options: {password: hunter2, user: me}}"
    file.write_text(PREPARE + f"join: {{input: {source}, by: a}}")
    resolved = dump(load(JOBS["prepare"], str(file)).resolved())
    assert "hunter2" not in resolved
    assert "user: me" in resolved


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping of keys, found an empty file"),
        ("# only a comment\n", "expected a mapping of keys, found an empty file"),
        ("- a\n- b\n", "expected a mapping of keys, found a list of 2"),
        ("just text", 'expected a mapping of keys, found "just text"'),
        ("a: [1\nb: 2", "line 2, column 2: not YAML: .*"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: expected each key once, found 'a' again"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_one_line(problems, text, expected):
    (line,) = problems(text)
    assert re.fullmatch(expected, line)


def test_a_missing_file_is_one_line_with_the_nearest_name(tmp_path):
    (tmp_path / "digits.yaml").write_text(SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, str(tmp_path / "digit.yaml"))
    assert str(caught.value) == (
        f"{tmp_path}/digit.yaml: expected a config file, found no such file "
        "(did you mean 'digits.yaml'?)"
    )


def test_a_file_that_is_not_text_and_a_directory_are_one_line(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected text in UTF-8"):
        load(TrainConfig, str(tmp_path / "binary.yaml"))
    with pytest.raises(ConfigError, match="directory"):
        load(TrainConfig, str(tmp_path))


def test_numbers_in_scientific_notation_are_numbers(config):
    # YAML 1.1 takes a mantissa without a dot for text
    job = config(SMALLEST, "estimator.params.tol=1e-6", "estimator.params.regParam=1E+0")
    assert job.estimator.params == {"tol": 1e-6, "regParam": 1.0}


def test_numbers_are_those_of_yaml_1_2():
    text = "{a: 010, b: 1:30, c: 1_000, d: -3, e: 0.5, f: .inf, g: 0x1F, h: 1., i: +.5e3}"
    assert parse(text) == {
        "a": 10, "b": "1:30", "c": "1_000", "d": -3, "e": 0.5, "f": float("inf"), "g": "0x1F",
        "h": 1.0, "i": 500.0,
    }  # fmt: skip


def test_dates_stay_text(config):
    job = config("input: {format: csv, path: 2024-01-31}\n" + ESTIMATOR)
    assert job.input[0].path == "2024-01-31"


# --- --set -----------------------------------------------------------------------------------


def test_set_reaches_into_mappings_and_lists(config):
    two = "input: [{format: csv, path: a}, {format: csv, path: b}]\nfeatures: [x, y]\n"
    job = config(two + ESTIMATOR, "input.1.path=c", "features.0=z", "split.test=0.5")
    assert job.input[1].path == "c"
    assert job.features == ["z", "y"]
    assert job.split.test == 0.5


def test_set_reaches_into_a_single_input(config):
    assert config(SMALLEST, "input.dataset=wine").input[0].dataset == "wine"


def test_set_of_a_spark_setting_takes_the_rest_as_its_name(config):
    job = config(
        SMALLEST + "spark:\n", "spark.sql.shuffle.partitions=4", "spark.spark.ui.enabled=false"
    )
    assert job.spark == {"spark.sql.shuffle.partitions": 4, "spark.ui.enabled": False}


def test_the_output_options_win_over_set(config):
    job = config(SMALLEST, "output.path=a", output={"path": "b", "overwrite": True})
    assert (job.output.path, job.output.overwrite) == ("b", True)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("split.test", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("features.2=x", r"features: expected an index from 0 to 1, found '2'"),
        ("label.x=3", r'label: expected a mapping or a list, found "y"'),
        ("split={", r"expected a value in YAML, found '\{'"),
    ],
)
def test_a_set_that_leads_nowhere_is_one_line(problems, assignment, expected):
    (line,) = problems(SMALLEST + "features: [a, b]\nlabel: y", assignment)
    assert re.search(expected, line)


def test_a_set_of_an_unknown_key_names_the_nearest(problems):
    (line,) = problems(SMALLEST, "splt.test=0.1")
    assert line.startswith("splt: ")
    assert "did you mean 'split'" in line
