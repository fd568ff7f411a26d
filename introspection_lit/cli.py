"""The command line: LightningCLI around the module and the data module."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

from introspection_lit.subcommands import answer
from introspection_lit.training import slurm
from introspection_lit.training.callbacks.adapter_export import AdapterExport
from introspection_lit.training.callbacks.best_checkpoint import BestCheckpoint
from introspection_lit.training.callbacks.evidence import Evidence
from introspection_lit.training.callbacks.finite_numbers import FiniteNumbers
from introspection_lit.training.callbacks.given_settings import GivenSettings
from introspection_lit.training.callbacks.interruption import Interruption
from introspection_lit.training.callbacks.monitors import LearningRate, LogOddsFigure, TrialsPerSecond
from introspection_lit.training.callbacks.out_of_memory import OutOfMemory, explained_memory
from introspection_lit.training.callbacks.progress_lines import progress_bar
from introspection_lit.training.callbacks.read_back import ReadBack
from introspection_lit.training.callbacks.replay_report import ReplayReport
from introspection_lit.training.callbacks.tensorboard_files import CurvesMayFail
from introspection_lit.training.callbacks.training_health import Watch
from introspection_lit.training.callbacks.writers import ConfigWriter, PredictionWriter, ReportWriter, ResultsWriter
from introspection_lit.training.checkpoint_files import CheckpointFiles
from introspection_lit.training.datamodule import IntrospectionDataModule
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.training.options import DataOptions
from introspection_lit.training.quiet import quieten
from introspection_lit.training.run_folders import place_problems, take_folder
from introspection_lit.trials.replay import chosen_trials, first_steered
from introspection_lit.trials.shown import print_trial
from introspection_lit.utils.config_files import (
    checkpoint_name_problems,
    class_problem,
    empty_options,
    refuse_ambiguous_yaml,
    seed_problems,
)
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.files import explain_write_errors, folder_problems


class IntrospectionCLI(LightningCLI):
    """LightningCLI with the project's callbacks, and a test right after ``fit`` on request.

    Args:
        args: The command line; default: ``sys.argv``.
        options: Further arguments of LightningCLI.
    """

    def __init__(self, *, args: list[str] | dict[str, Any] | None = None, **options: Any) -> None:
        words = sys.argv[1:] if args is None else args
        # Behind a configuration, or in a dictionary, there may be options of any subcommand.
        self._runs = options.get("run", True)
        self._only = words[0] if isinstance(words, list) and words and words[0] in self.subcommands() else None
        super().__init__(args=args, **options)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Leave the parsers of other subcommands empty: the options of each take a tenth of a second to read."""
        if self._only not in (None, subcommand):
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that have options, and ``--test_after_fit``."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Evidence, "evidence")
        parser.set_defaults(
            {
                "checkpoint.monitor": "validation/selection",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best-step{step}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint when fit is done (fit only)."
        )
        if not self._runs:  # options of subcommands, which the configuration that a run has saved holds
            for name in ("ckpt_path", "weights_only", "verbose"):
                parser.add_argument(f"--{name}", default=None, help="Not used.")

    def _parse_ckpt_path(self) -> None:
        """Let the command line win over hyper-parameters in a checkpoint.

        LightningCLI does the opposite (Lightning issue 20801), and reads the file before it is checked. Our checkpoints
        have no hyper-parameters; settings that must agree are compared by
        :func:`~introspection_lit.training.checkpoint_checks.checkpoint_problems`.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line and the configurations that it names.

        Raises:
            ConfigurationError: A configuration is not text, or its name cannot be a file's.
        """
        refuse_ambiguous_yaml()
        try:
            super().parse_arguments(parser, args)
        except (UnicodeError, RecursionError) as error:
            raise ConfigurationError([f"--config: it cannot be read as YAML in UTF-8 ({error})."]) from error
        except ValueError as error:
            if "null byte" not in str(error):
                raise
            raise ConfigurationError(["--config: its name holds a null character. Expected a file."]) from error

    def _set_seed(self) -> None:
        """Check the options that no class has checked, before classes are instantiated."""
        problems = seed_problems(self._get(self.config, "seed_everything"))
        problems += checkpoint_name_problems(self._get(self.config, "ckpt_path"))
        groups = {"trainer": Trainer, "model": IntrospectionModule, "data": DataOptions}
        groups |= {"checkpoint": BestCheckpoint, "evidence": Evidence}
        for group, made in groups.items():
            given = self._get(self.config, group)
            if group in ("model", "data") or not isinstance(given, Namespace):
                problems += empty_options(group, given, made)
        if problems:
            raise ConfigurationError(problems)
        super()._set_seed()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Make the trainer.

        Raises:
            ConfigurationError: It cannot be made as configured; Lightning says why.
        """
        with slurm.explained_tasks(self._get(self.config, "trainer.plugins") is None):
            try:
                return super().instantiate_trainer(**options)
            except ConfigurationError:
                raise
            except (ValueError, TypeError) as error:
                raise ConfigurationError([f"trainer: {error}"]) from error

    def instantiate_classes(self) -> None:
        """Make trainer, module and data module.

        Raises:
            ConfigurationError: A class that an option names cannot be made, for example because a package is missing.
        """
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            problem = class_problem(error, self._get(self.config, "trainer"))
            if problem is None or isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError([problem]) from error

    def before_instantiate_classes(self) -> None:
        """Remove the progress bar if it is switched off."""
        if self._get(self.config, "trainer.enable_progress_bar") is False:
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [c for c in callbacks if not isinstance(c, ProgressBar)]

    def after_instantiate_classes(self) -> None:
        """Pass the checkpoint's path to the data module, which checks it before the model is loaded."""
        self.datamodule.run.checkpoint = self._get(self.config, "ckpt_path")
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default: the user named no other
            strategy.checkpoint_io = CheckpointFiles()
        slurm.never_requeue(self.trainer)
        if self._get(self.config, "trainer.logger") is True:  # Lightning's, which all runs of a SLURM job would share
            self.trainer.logger._version = None  # type: ignore[union-attr]
        if self.subcommand is not None:
            self._check_place()

    def _check_place(self) -> None:
        """Check that the run's folders are writable, and that each task of a SLURM job is a process of the trainer.

        Raises:
            ConfigurationError: They are not.
        """
        trainer, problems = self.trainer, slurm.process_problems(self.trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            problems += place_problems(trainer)
            if checkpoints := self._get(self.config, "checkpoint.dirpath"):
                problems += folder_problems(Path(checkpoints), "checkpoint.dirpath")
        if problems:
            raise ConfigurationError(problems)

    def before_fit(self) -> None:
        """Check everything, then take the run's folder: before a logger is opened, or another process is started.

        Raises:
            ConfigurationError: Anything is wrong.
        """
        _connect(self)
        self.trainer.state.fn = TrainerFn(self.subcommand)
        run = self.datamodule.run
        run.experiment = prepare(run)
        if self.trainer.is_global_zero:
            run.folder = take_folder(run)

    before_validate = before_predict = before_fit

    def after_fit(self) -> None:
        """Test the best checkpoint if ``--test_after_fit``."""
        saver = self.trainer.checkpoint_callback
        # Without a checkpoint (a dev run, or one that ended before its first validation) there is nothing to test.
        if not self._get(self.config, "test_after_fit"):
            return
        if isinstance(saver, ModelCheckpoint) and saver.best_model_path:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best", verbose=False)
        else:
            rank_zero_warn("test_after_fit: nothing was tested, since no validation has saved a checkpoint.")

    def before_test(self) -> None:
        """As for every run; and switch Lightning's table off: ResultsWriter prints one."""
        self.config_init["test"]["verbose"] = False
        self.before_fit()


def main(args: list[str] | dict[str, Any] | None = None) -> IntrospectionCLI:
    """Run ``python -m introspection_lit``.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Returns:
        The CLI after its subcommand has run, with ``trainer``, ``model`` and ``datamodule``.

    Raises:
        SystemExit: With the problems on stderr: 2 if the configuration cannot work, 1 if the run was stopped by something
            else; 0 once a report is written, or help.
    """
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list):
        answer(words)
    try:
        with explain_write_errors(), explained_memory():
            if isinstance(words, list) and words[:1] == ["show"]:
                return show(words[1:])
            return _cli(args, run=True)
    except (ConfigurationError, MisconfigurationException) as error:
        sys.stderr.write(f"error: the configuration cannot work. {error}\n")
        raise SystemExit(2) from error
    except RunError as error:
        sys.stderr.write(f"error: the run has stopped. {error}\n")
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit as error:
        if error.code == 1 and isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into status 1
            raise SystemExit(130) from None
        raise


def show(words: list[str]) -> IntrospectionCLI:
    """Print trials of a configuration as the model reads them, without loading the model.

    Args:
        words: ``--trial SPLIT:NUMBER`` (several; by default a steered one of training), and the options of ``fit``.

    Returns:
        The CLI, which has run nothing.

    Raises:
        ConfigurationError: The configuration cannot work, or has no such trial.
    """
    about = "Print trials as the model reads them: what is steered, and where the answer is read. The model is not loaded."
    parser = argparse.ArgumentParser("python -m introspection_lit show", description=about, allow_abbrev=False)
    parser.epilog = "All other options are those of fit, such as --config FILE."
    named = "SPLIT:NUMBER, such as heldout:3; by default the first of train that is steered"
    parser.add_argument("--trial", nargs="+", metavar="TRIAL", help=named)
    options, others = parser.parse_known_args(words)
    cli = attach([*others, "--trainer.logger", "false"])
    splits = prepare(cli.datamodule.run).splits
    chosen = chosen_trials(options.trial, splits, "--trial") if options.trial else [first_steered(splits["train"])]
    for trial in chosen:
        print_trial(splits[trial.split], trial)
    return cli


def attach(args: list[str]) -> IntrospectionCLI:
    """Read a configuration and put trainer, module and data module together, without running anything.

    Args:
        args: Options, without a subcommand.

    Returns:
        A CLI whose ``datamodule`` can be prepared or set up.

    Raises:
        ConfigurationError: The trainer cannot work as configured.
    """
    try:
        cli = _cli(args, run=False)
    except MisconfigurationException as error:
        raise ConfigurationError([str(error)]) from error
    _connect(cli)
    return cli


def _connect(cli: IntrospectionCLI) -> None:
    cli.trainer.strategy.connect(cli.model)
    cli.model.trainer = cli.datamodule.trainer = cli.trainer


def _cli(args: list[str] | dict[str, Any] | None, run: bool) -> IntrospectionCLI:
    quieten()
    return IntrospectionCLI(
        model_class=IntrospectionModule,
        datamodule_class=IntrospectionDataModule,
        run=run,
        seed_everything_default=0,
        trainer_defaults={
            "gradient_clip_val": 1.0,
            "callbacks": [
                progress_bar(),
                GivenSettings(),
                LearningRate(),
                TrialsPerSecond(),
                FiniteNumbers(),
                CurvesMayFail(),
                Interruption(),
                Watch(),
                ReadBack(),
                LogOddsFigure(),
                AdapterExport(),
                ResultsWriter(),
                ReportWriter(),
                PredictionWriter(),
                ReplayReport(),
                OutOfMemory(),
            ],
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "lightning_logs", "name": "default", "default_hp_metric": False},
            },
            # After a resume Lightning 2.6 would go on with the iterator of epoch 0, and train on its trials again.
            "reload_dataloaders_every_n_epochs": 1,
        },
        auto_configure_optimizers=False,
        save_config_callback=ConfigWriter,
        parser_kwargs={"parser_mode": "yaml"},
        args=args,
    )
