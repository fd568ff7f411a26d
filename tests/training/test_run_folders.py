"""Every run has a folder of its own, whatever the logger, and writes into no other; a refused run leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.fabric.utilities.imports import RequirementCache
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from loggers import Shared
from project_paths import CONFIG
from two_processes import run_together

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.training.run_folders import take_folder, taken_problems

SHORT = ["--trainer.max_epochs", "1", "--data.test_trials", "{heldout: 8}"]
VERSION = "--trainer.logger.init_args.version"
LOGGERS = {
    "shared folder": ["--trainer.logger", "loggers.Shared"],
    "one id for all runs": ["--trainer.logger", "loggers.Shared", VERSION, "mine"],
    "no folder": ["--trainer.logger", "loggers.Nameless"],
    "no logger": ["--trainer.logger", "false"],
    "Lightning's own": ["--trainer.logger", "true"],
    "CSV": ["--trainer.logger", "CSVLogger"],
    "several": ["--trainer.logger+=loggers.Shared"],
    "several, the shared first": [
        "--trainer.logger",
        "[{class_path: loggers.Shared}, {class_path: CSVLogger, init_args: {save_dir: .}}]",
    ],
    "the default": [],
}


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Runs a subcommand on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(subcommand: str, *options: str) -> IntrospectionCLI:
        base = ["--model.base.name_or_path", str(tiny), *some_contexts, *SHORT]
        return main([subcommand, "--config", CONFIG, *base, *options])

    return command


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("logger", [pytest.param(options, id=name) for name, options in LOGGERS.items()])
def test_two_runs_never_share_a_folder(
    run: Callable[..., IntrospectionCLI], logger: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit leaves all of its files in one folder, and no later run of any kind writes there."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # Lightning's own logger would name all runs of a job alike
    first = run("fit", *logger, "--test_after_fit", "true").datamodule.run.folder
    names = {path.name for path in first.iterdir()}
    assert {"config.yaml", "vectors.safetensors", "checkpoints", "adapter", "results.json", "log_odds.png"} <= names
    assert {path.name for path in (first / "checkpoints").iterdir()} == {"best-step3.ckpt", "last.ckpt"}
    before = contents(first)
    folders = [first]
    for command in ("test", "predict"):
        cli = run(command, *logger, "--ckpt_path", str(first / "checkpoints" / "last.ckpt"))
        folders.append(cli.datamodule.run.folder)
        assert {"config.yaml", "vectors.safetensors"} <= {path.name for path in folders[-1].iterdir()}
    again = run("fit", *logger).trainer
    folders.append(Path(again.checkpoint_callback.dirpath).parent)
    assert len({folder.resolve() for folder in folders}) == 4
    assert {path: before[path] for path in before} == {path: path.read_bytes() for path in before}
    assert not Path("results.json").exists()
    assert not Path("lightning_logs/results.json").exists()


def test_a_logger_says_where_the_files_are(run: Callable[..., IntrospectionCLI]) -> None:
    """Its page is elsewhere, and the number of the folder is not that of the page."""
    cli = run("validate", *LOGGERS["shared folder"])
    settings = cli.trainer.logger.settings
    assert settings["folder"] == str(cli.datamodule.run.folder.resolve())
    assert (settings["model"]["learning_rate"], settings["data"]["train_vectors"]) == (0.01, 4)
    assert cli.datamodule.run.folder == Path("lightning_logs", "project", cli.trainer.logger.version)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_folder_that_is_named_holds_no_other_run(
    run: Callable[..., IntrospectionCLI], command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind of run it is: its configuration would be written over. A requeued job goes on in its own."""
    folder = run("validate", VERSION, "job-7").datamodule.run.folder
    before = contents(folder)
    with pytest.raises(SystemExit) as left:
        run(command, VERSION, "job-7")
    assert left.value.code == 2
    assert "job-7 holds files of another run (config.yaml, vectors.safetensors" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(SystemExit):
        run(command, VERSION, "job-7")
    assert contents(folder) == before
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run(command, VERSION, "job-7").datamodule.run.folder == folder


def test_only_the_run_that_is_resumed_goes_on_in_its_folder(
    run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint that lies there, not from any; nor beside another run's checkpoints."""
    first = run("fit", VERSION, "first").datamodule.run.folder
    second = run("fit", VERSION, "second").datamodule.run.folder
    last = str(first / "checkpoints" / "last.ckpt")
    for more in ([VERSION, "second"], ["--checkpoint.dirpath", str(second / "checkpoints")]):
        with pytest.raises(SystemExit):
            run("fit", "--ckpt_path", last, *more)
        assert "of another run" in capsys.readouterr().err
    longer = ["--ckpt_path", last, "--trainer.max_epochs", "2"]
    assert run("fit", *longer, VERSION, "first").datamodule.run.folder == first


def test_checkpoints_may_lie_elsewhere(run: Callable[..., IntrospectionCLI], tmp_path: Path) -> None:
    """In a folder of their own, or on another disk behind a link: the run goes on in its folder, and CSV keeps its rows."""
    csv, place = ["--trainer.logger", "CSVLogger", VERSION, "mine"], ["--checkpoint.dirpath", str(tmp_path / "scratch")]
    first = run("fit", *csv, *place).datamodule.run.folder
    rows = (first / "metrics.csv").read_text()
    longer = ["--ckpt_path", str(tmp_path / "scratch" / "last.ckpt"), "--trainer.max_epochs", "2"]
    assert run("fit", *csv, *place, *longer).datamodule.run.folder == first
    assert (first / "metrics-before-1.csv").read_text() == rows
    second = run("fit", VERSION, "linked").datamodule.run.folder
    (second / "checkpoints").rename(tmp_path / "disk")
    (second / "checkpoints").symlink_to(tmp_path / "disk")
    longer[1] = str(second / "checkpoints" / "last.ckpt")
    assert run("fit", VERSION, "linked", *longer).datamodule.run.folder == second


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_another_trainer_with_the_same_logger(
    logger: type[TensorBoardLogger | CSVLogger], run: Callable[..., IntrospectionCLI], tmp_path: Path
) -> None:
    """As Lightning's guides do: what one trains, another one tests, in the same folder; a second training is refused."""
    cli = run("validate", "--trainer.logger", "false")
    mine = logger(tmp_path, name="mine")
    module, data = cli.model, cli.datamodule

    def problems(function: str) -> list[str]:
        trainer = Trainer(logger=mine, accelerator="cpu", enable_progress_bar=False)
        trainer.state.fn = TrainerFn(function)
        module.trainer = data.trainer = trainer
        return taken_problems(data.run)

    assert module is not None
    assert problems("fit") == []
    folder = take_folder(data.run)
    (folder / "config.yaml").touch()
    assert problems("test") == []
    assert take_folder(data.run) == folder
    assert "holds files of another run" in problems("fit")[0]


def test_jobs_of_an_array_go_on_in_their_folder(
    run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM gives each task a number of its own, but its files are called by the array's and the task's."""
    folder = run("validate", VERSION, "job-100_3").datamodule.run.folder
    for name, value in {"RESTART_COUNT": "1", "JOB_ID": "104", "ARRAY_JOB_ID": "100", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run("validate", VERSION, "job-100_3").datamodule.run.folder == folder
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    with pytest.raises(SystemExit):
        run("validate", VERSION, "job-100_3")


def test_a_page_that_notes_nothing_more(run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some services refuse to change what is noted: the run goes on, and says so."""

    def refuse(*_: object) -> None:
        raise RuntimeError("params cannot be changed")

    monkeypatch.setattr(Shared, "log_hyperparams", refuse)
    with pytest.warns(UserWarning, match=r"Shared has not noted the run's folder, .*: params cannot be changed"):
        run("validate", *LOGGERS["shared folder"])


def test_two_runs_that_start_at_once(run: Callable[..., IntrospectionCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the same next number; the folder is made by one of them alone."""
    first = run("validate").datamodule.run.folder
    monkeypatch.setattr(TensorBoardLogger, "_get_next_version", lambda _: 0)
    second = run("validate").datamodule.run.folder
    assert (first.name, second.name) == ("version_0", "version_1")


def test_a_refused_run_leaves_nothing(refused: Callable[..., str]) -> None:
    """No folder, and no page of a logger."""
    opened = Shared.opened
    assert "data.seed" in refused("--data.seed", "-1")
    assert "data.seed" in refused("--data.seed", "-1", "--trainer.logger", "loggers.Shared")
    assert not list(Path().iterdir())
    assert Shared.opened == opened


def test_a_dev_run_leaves_nothing(run: Callable[..., IntrospectionCLI]) -> None:
    """As before: it is to be seen whether it runs."""
    run("fit", "--trainer.fast_dev_run", "true")
    assert not list(Path().rglob("*"))


def test_a_logger_that_is_not_installed(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that says what to install; so do those of a list."""
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", RequirementCache("no-such-package>=1"))
    for logger in (["--trainer.logger", "WandbLogger"], ["--trainer.logger", "[{class_path: WandbLogger}]"]):
        printed = refused(*logger)
        assert "trainer.logger: Problem with given class_path" in printed
        assert "WandbLogger': Requirement 'no-such-package>=1' not met" in printed
        assert "pip install" in printed
        assert len(printed.splitlines()) < 5


def test_a_logger_that_cannot_be_opened(refused: Callable[..., str]) -> None:
    """Such as one of a service in which nobody is logged in; before the model is loaded."""
    assert "trainer.logger: Closed cannot be opened: api_key not configured (no-tty)" in refused(
        "--trainer.logger", "loggers.Closed"
    )


@pytest.mark.slow
def test_two_processes_have_one_folder(tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """Only the first one opens the logger, and knows what its folder is called."""
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *SHORT]
    words += ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.logger", "loggers.Shared"]
    run_together(tmp_path, [["fit", *words, "--test_after_fit", "true"]])
    (results,) = tmp_path.rglob("results.json")
    assert results.parent == tmp_path / "lightning_logs" / "project" / "id1"
    names = {path.name for path in results.parent.iterdir()}
    assert {"config.yaml", "vectors.safetensors", "checkpoints", "adapter"} <= names
    assert len(list(tmp_path.rglob("last*.ckpt"))) == len(list(tmp_path.rglob("config.yaml"))) == 1
