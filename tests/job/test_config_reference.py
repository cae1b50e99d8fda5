"""The page of all keys is that of the models; the ready configs are right in every key."""

from pathlib import Path

import pytest
import yaml

import mllib_ext
from mllib_ext.job.config import load
from mllib_ext.job.config.reference import JOBS, markdown
from mllib_ext.job.problems import ConfigError

ROOT = Path(mllib_ext.__path__[0]).parent
READY = sorted((ROOT / "conf" / "jobs").glob("*.yaml"))


def test_the_page_of_all_keys_is_current():
    # python -m mllib_ext.job.config.reference > docs/config.md
    assert (ROOT / "docs" / "config.md").read_text() == markdown()


def job_of(file):
    """The job whose command the file's first lines give."""
    return file.read_text().partition("jobs/")[2].partition(".py")[0]


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_ready_config_is_right_and_names_what_it_lacks(file):
    model = JOBS[job_of(file)]
    values = yaml.safe_load(file.read_text())
    assert f"conf/jobs/{file.name}" in file.read_text()  # its own command
    if "path" not in values["input"] and values["input"]["format"] != "sklearn":
        with pytest.raises(ConfigError) as caught:
            load(model, str(file))
        assert caught.value.problems == (
            f"input.path: expected where the {values['input']['format']} files are, found nothing",
        )
    config = load(model, str(file), [] if "dataset" in values["input"] else ["input.path=there"])
    assert config.name == file.stem
    assert config.output.path == f"output/{file.stem}"
    again = {**config.resolved()}
    assert model.model_validate(again) == config


def test_there_is_a_ready_config_for_every_job():
    assert {job_of(file) for file in READY} == set(JOBS)
