"""The paper's tables and figures, each by one command: `esl-sparse reproduce table1`."""

from .convolutional import FIG3, FIG4, TABLE2
from .experiment import Experiment, Scale, reproduce
from .single_spike import FIG2, TABLE1

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (TABLE1, TABLE2, FIG2, FIG3, FIG4)
}

__all__ = ["EXPERIMENTS", "Experiment", "Scale", "reproduce"]
