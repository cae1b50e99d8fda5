"""A job run from a mapping, in the session of the tests."""

import json
from types import SimpleNamespace

import pytest
import yaml
from scripts import load_job


@pytest.fixture
def run(spark, tmp_path, capsys):
    """``run(job, config, *argv)``: the exit code, what was said, and the report if there is one."""

    def of(job, config, *argv):
        file = tmp_path / f"{job}.yaml"
        out = tmp_path / f"{job}-out"
        file.write_text(yaml.safe_dump({"output": {"path": str(out)}, **config}))
        capsys.readouterr()
        code = load_job(job).main(["--config", str(file), *argv])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        report = out / "metrics.json"
        return SimpleNamespace(
            code=code,
            out=said.out,
            err=said.err,
            path=out,
            report=json.loads(report.read_text()) if report.exists() else None,
        )

    return of
