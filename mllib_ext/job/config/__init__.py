"""What may stand in a job's YAML file: one model a job, and the sections that jobs share."""

from mllib_ext.job.config.evaluate import EvaluateConfig
from mllib_ext.job.config.job import JobConfig, Output, load
from mllib_ext.job.config.neighbors import NeighborsConfig
from mllib_ext.job.config.pipeline import Encoding, EstimatorStage, Stage
from mllib_ext.job.config.predict import PredictConfig
from mllib_ext.job.config.prepare import PrepareConfig
from mllib_ext.job.config.source import FILES, Source
from mllib_ext.job.config.train import Split, TrainConfig
from mllib_ext.job.config.tune import TuneConfig

__all__ = [
    "FILES",
    "Encoding",
    "EstimatorStage",
    "EvaluateConfig",
    "JobConfig",
    "NeighborsConfig",
    "Output",
    "PredictConfig",
    "PrepareConfig",
    "Source",
    "Split",
    "Stage",
    "TrainConfig",
    "TuneConfig",
    "load",
]
