"""Config files: everything that is wrong is said at once, in plain words, before Spark starts."""

import re

import pytest

from mllib_ext.job.config import TrainConfig, load
from mllib_ext.job.problems import ConfigError
from mllib_ext.job.yamlfile import dump

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

    found = list(fields(TrainConfig))
    assert len(found) > 20
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
