"""Runs on models whose chat template thinks, or that have none: training, export, and what is printed about it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from chat_styles import STYLES

from introspection_lit import Detector
from introspection_lit.cli import main
from introspection_lit.models.adapters import read_adapter
from introspection_lit.utils.errors import ConfigurationError

CONFIG = str(Path(__file__).parents[1] / "conf/tiny.yaml")
SHORT = ["--trainer.max_epochs", "1", "--data.test_trials", "{heldout: 8, as_exported: 16}", "--evidence.enabled", "true"]
CHEAP = [*SHORT, "--evidence.probe_trials", "0", "--evidence.lens_trials", "0", "--evidence.texts", "0"]
# What follows the generation prompt of each style, as Python.
STARTS = {"thinks": r"<think>\n\n</think>\n\nThe answer is", "opens": r"\n</think>\n\nThe answer is"}


def without_template(tiny: Path, folder: Path) -> Path:
    """The tiny model as a base model, which has no chat template."""
    shutil.copytree(tiny, folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    return folder


def run_card(folder: Path) -> float:
    """What the Python of an exported adapter's card prints: plain transformers and PEFT, one pass."""
    card = (folder / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", card, re.S)
    assert block is not None
    with redirect_stdout(StringIO()) as printed:
        exec(block[1].replace("this/folder", str(folder)), {})
    return float(printed.getvalue())


@pytest.mark.parametrize("name", STARTS)
def test_adapters_do_in_one_pass_what_they_do_in_two(
    name: str,
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the test set, by the card's lines and by the detector; and what is done about the template is said once."""
    base = without_template(tiny, tmp_path / "base")
    (base / "chat_template.jinja").write_text(STYLES[name].template)
    common = ["--config", CONFIG, "--model.base.name_or_path", str(base), *some_contexts, *CHEAP]
    told: list[str] = []  # other tests may have quietened the logger
    monkeypatch.setattr("introspection_lit.training.experiment_setup.rank_zero_info", told.append)
    main(["fit", *common, "--test_after_fit", "true", f"--trainer.logger.init_args.save_dir={tmp_path}"])
    printed, said = capsys.readouterr().out, "\n".join(told)
    run = tmp_path / "default" / "version_0"
    compared = json.loads((run / "results.json").read_text())["evidence"]["as_exported"]
    assert compared["largest_difference"] < 1e-4
    check = json.loads((run / "adapter" / "introspection.json").read_text())["check"]
    assert check["largest_difference"] < 1e-4
    assert STARTS[name] in (run / "adapter" / "README.md").read_text()
    assert run_card(run / "adapter") == pytest.approx(check["example"], abs=0.01)
    answer = Detector.from_pretrained(run / "adapter").ask(
        "What is the capital of France?", "The capital of France is Paris."
    )
    assert answer.log_odds == pytest.approx(check["example"], abs=1e-4)
    assert said.count("chat template: answers start after the generation prompt and ") == 1
    assert said.count("written otherwise than earlier ones") == (name == "thinks")
    assert printed.count("as the model reads it") == 1
    assert "</think>\n\nThe answer is▮" in printed


def test_a_base_model_with_a_template_of_ones_own(
    tiny: Path, some_contexts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused without, with the option to give; with it trained, and the template goes where the adapter goes."""
    base = without_template(tiny, tmp_path / "base")
    template = tmp_path / "mine.jinja"
    template.write_text(STYLES["added"].template)
    common = ["--config", CONFIG, "--model.base.name_or_path", str(base), *some_contexts, *CHEAP]
    common += [f"--trainer.logger.init_args.save_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        main(["fit", *common])
    assert "or a template in data.chat_template" in capsys.readouterr().err
    main(["fit", *common, "--data.chat_template", str(template)])
    (folder,) = tmp_path.glob("default/version_*/adapter")
    assert (folder / "chat_template.jinja").read_text() == STYLES["added"].template
    options = json.loads((folder / "introspection.json").read_text())["options"]
    assert options["data.chat_template"] == "chat_template.jinja"
    check = json.loads((folder / "introspection.json").read_text())["check"]
    assert run_card(folder) == pytest.approx(check["example"], abs=0.01)
    answer = Detector.from_pretrained(folder).ask("What is the capital of France?", "The capital of France is Paris.")
    assert answer.log_odds == pytest.approx(check["example"], abs=1e-4)
    (folder / "chat_template.jinja").write_text("changed")
    with pytest.raises(ConfigurationError, match=r"chat_template\.jinja"):
        Detector.from_pretrained(folder)
    assert read_adapter(str(folder)).description is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"\xff", "it is not UTF-8 text"),
        (b" \n", "is empty"),
        (b"{% for m in messages %}", "data.chat_template: no Jinja"),
    ],
)
def test_files_that_are_no_templates(
    content: bytes | None, message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Each is named before the model is loaded."""
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)
    assert message in refused("--data.chat_template", str(tmp_path / "mine.jinja"))


def test_trials_are_shown(
    tiny: Path,
    some_contexts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any, by name, without a model: the whole text, what of it is steered, and where the answer is read."""
    monkeypatch.setattr("introspection_lit.training.module.load_model", None)
    monkeypatch.chdir(tmp_path)
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    sets = ["--data.test_trials", "{heldout: 8, scattered: 8}"]
    main(["show", *common, *sets, "--trial", "train:0", "train:1", "scattered:1"])
    clean, steered, scattered = re.split(r"\n(?=train:1|scattered:1)", capsys.readouterr().out)
    assert "clean; context of kind" in clean
    assert "⟦" not in clean
    assert re.search(r"⟦<\|im_start\|>system.*<\|im_end\|>\s*⟧", steered, re.S)
    assert (
        steered.replace("⟦", "").replace("⟧", "").split("\n\n", 1)[1].split("▮")[0]
        == clean.split("\n\n", 1)[1].split("▮")[0]
    )
    assert "assistant\nThe answer is▮" in steered
    assert re.search(r"▮: the answer, token 'yes' \(\d+\) or 'no' \(\d+\)", steered)
    assert scattered.count("⟦") > 3
    assert not (tmp_path / "lightning_logs").exists()
    with pytest.raises(SystemExit) as left:
        main(["show", *common, "--trial", "nowhere:1"])
    assert left.value.code == 2
    assert "--trial: 'nowhere:1'" in capsys.readouterr().err


def test_a_saved_configuration_is_shown(
    tiny: Path, few_contexts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the options of its subcommand."""
    old = (Path(__file__).parents[1] / "contract" / "run" / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(old)
    base = ["--model.base.name_or_path", str(tiny), "--data.contexts", few_contexts, "--data.validation_kinds", "[csv]"]
    main(
        [
            "show",
            "--config",
            str(tmp_path / "config.yaml"),
            *base,
            "--data.test_kinds",
            "[]",
            "--data.test_trials",
            "{heldout: 2}",
        ]
    )
    assert "▮" in capsys.readouterr().out
