"""What loggers are given besides metrics: figures, warnings and the configuration, each in the way of its service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.report.pictures import to_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Loggers that are given figures.
SHOWING = (TensorBoardLogger, WandbLogger, MLFlowLogger)


def showing(trainer: Trainer) -> list[Logger]:
    """The loggers of a trainer that show figures."""
    return [logger for logger in trainer.loggers if isinstance(logger, SHOWING)]


def log_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Give a figure, at the trainer's step, to every logger that shows figures. First process only.

    Args:
        trainer: With the loggers.
        name: As metrics are called: ``split/name``.
        figure: It may be closed afterwards.
    """
    step = trainer.global_step
    for logger in showing(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step)
            continue
        picture = to_picture(figure).convert("RGB")
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, key=name, step=step, synchronous=True)


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Give a text, at the trainer's step, to every logger that shows figures, which show texts, too. First process only.

    Args:
        trainer: With the loggers.
        name: As metrics are called: ``group/name``. Of texts with the same name MLflow keeps the last.
        text: Plain.
    """
    step = trainer.global_step
    for logger in showing(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, ["text"], [[text]], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}.txt")


def log_settings(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Give settings to every logger with a page of its own, as hyper-parameters. First process only.

    TensorBoard shows hyper-parameters beside the metrics that they led to, and gets them at the end of a fit; a CSV file
    lies beside the run's ``config.yaml``.

    Args:
        trainer: With the loggers.
        settings: Plain values, and dictionaries of them.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger | CSVLogger):
            note(logger, settings, "the run's settings")


def note(logger: Logger, settings: Mapping[str, Any], what: str) -> None:
    """Let a logger note settings; if it cannot, that is said, and the run goes on.

    A page that goes on keeps what was noted first: MLflow refuses another value for a hyper-parameter.

    Args:
        logger: With a page of its own.
        settings: Plain values, and dictionaries of them.
        what: They are, for the message.
    """
    try:
        logger.log_hyperparams(dict(settings))
    except Exception as error:  # of any package
        rank_zero_warn(f"{type(logger).__name__} has not noted {what}: {error}")
