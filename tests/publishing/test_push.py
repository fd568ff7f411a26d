"""`push` against a hub in this process: one commit with the files of the dry run, read back by its id, or nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from project_paths import CONFIG
from safetensors import safe_open
from small_hub import SmallHub

from introspection_lit.cli import main
from introspection_lit.detector import Detector
from introspection_lit.publishing import command, privacy
from introspection_lit.utils.checksums import with_checksum

BASE, NAME = "somebody/tiny-base", "me/notices-steering"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "introspection.json"}
FILES |= {"vectors.safetensors", "results.json", "report.html"}
SETS = ["--data.test_trials", "{heldout: 8, swapped: 8, factual: 8}", "--evidence.enabled", "true"]
SETS += [option for name in ("probe_trials", "lens_trials", "texts", "facts") for option in (f"--evidence.{name}", "0")]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a model in a local folder, tested."""
    root = tmp_path_factory.mktemp("pushed")
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *SETS]
    words += ["--test_after_fit", "true", "--trainer.max_epochs", "1", f"--trainer.logger.init_args.save_dir={root}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["introspection-lit", "fit", *words])
        main(["fit", *words])
    return root / "default" / "version_0"


@pytest.fixture
def hub(tiny: Path) -> Iterator[SmallHub]:
    """With the base model."""
    with SmallHub() as hub:
        hub.add(BASE, tiny)
        yield hub


def python(hub: SmallHub, cache: Path, *words: str, token: bool = True) -> SimpleNamespace:
    """Run Python in a process that takes the small hub for the hub: its exit status, and what it printed."""
    environment = hub.environment(cache) if token else hub.environment(cache, None)
    done = subprocess.run([sys.executable, *words], env=environment, cwd=cache, capture_output=True, text=True)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)


def pushed(hub: SmallHub, cache: Path, run: Path, *options: str) -> SimpleNamespace:
    """Push the run."""
    words = ["push", str(run), NAME, "--base-model", BASE, "--license", "apache-2.0", *options]
    return python(hub, cache, "-m", "introspection_lit", *words)


@pytest.fixture(scope="module")
def dry(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run."""
    folder: Path = tmp_path_factory.mktemp("dry") / "published"
    words = [str(run), NAME, "--base-model", BASE, "--license", "apache-2.0", "--dry-run", str(folder)]
    command.main(words)
    return folder


def test_one_commit_with_the_files_of_the_dry_run_is_read_back(
    hub: SmallHub, run: Path, dry: Path, tiny: Path, tmp_path: Path
) -> None:
    """Byte by byte; the card's code runs as it is, and prints what the run's own folder says; a second push is one more."""
    done = pushed(hub, tmp_path, run, "--private")
    assert done.status == 0, done.err
    there = hub.repositories[NAME]
    assert (there.commits, there.private) == (1, True)
    assert there.files == {path.name: path.read_bytes() for path in dry.iterdir()}
    assert there.files.keys() == FILES
    assert f"{hub.endpoint}/{NAME}/commit/{there.sha}" in done.out

    code = re.findall(r"^```python\n(.*?)^```", there.files["README.md"].decode(), re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    assert len(code[0].splitlines()) == 5
    (tmp_path / "card.py").write_text("\n".join(code))
    said = python(hub, tmp_path, "card.py")
    assert said.status == 0, said.err
    clean, steered, logits = said.out.splitlines()[-3:]
    detector = Detector.from_pretrained(run / "adapter", device="cpu")
    local = detector.ask("What is the capital of France?", "Paris.")
    number = re.search(r"log_odds=([-\d.]+)", clean)
    assert number
    assert float(number[1]) == pytest.approx(local.log_odds, abs=1e-5)
    assert clean != steered
    check = json.loads((run / "adapter" / "introspection.json").read_text())["check"]
    assert float(logits) == pytest.approx(check["example"], abs=1e-4)

    there.files |= {"chat_template.jinja": b"of an earlier upload", "notes.txt": b"mine"}
    assert pushed(hub, tmp_path, run).status == 0
    assert (hub.repositories[NAME].commits, hub.repositories[NAME].files.keys()) == (2, FILES | {"notes.txt"})


def test_a_test_by_hub_id_gives_the_published_results(
    hub: SmallHub, dry: Path, some_contexts: list[str], tmp_path: Path
) -> None:
    """`test --model.adapter NAME` with the published vectors, on the base model from the hub."""
    hub.add(NAME, dry)
    words = ["test", "--config", CONFIG, "--model.base.name_or_path", BASE, "--model.adapter", NAME, *some_contexts]
    words += [*SETS, "--data.bank", str(dry / "vectors.safetensors"), "--evidence.enabled", "false"]
    done = python(hub, tmp_path, "-m", "introspection_lit", *words)
    assert done.status == 0, done.err
    (results,) = tmp_path.rglob("results.json")
    again, published = (json.loads(path.read_text())["sets"] for path in (results, dry / "results.json"))
    for name, row in published.items():
        for field, value in row.items():
            assert again[name][field] == pytest.approx(value, abs=1e-5), (name, field)


@pytest.mark.parametrize("place", ["PUT /lfs", "POST .*/preupload", "POST .*/commit"])
def test_a_stopped_upload_leaves_nothing(hub: SmallHub, run: Path, tmp_path: Path, place: str) -> None:
    """Whatever fails: no file, a message, exit status 1; the same command then does it."""
    hub.broken = [place]
    done = pushed(hub, tmp_path, run)
    assert done.status == 1
    assert "It is one commit, which was not made" in done.err
    assert "Traceback" not in done.err
    assert (hub.repositories[NAME].files, hub.repositories[NAME].commits) == ({}, 0)
    if place == "PUT /lfs":
        hub.broken = []
        assert pushed(hub, tmp_path, run).status == 0
        assert hub.repositories[NAME].files.keys() == FILES


def test_private_means_private(hub: SmallHub, run: Path, dry: Path, tmp_path: Path) -> None:
    """A repository that is there and public gets nothing."""
    hub.add(NAME, dry)
    before = dict(hub.repositories[NAME].files)
    done = pushed(hub, tmp_path, run, "--private")
    assert done.status == 2
    assert "is there and public" in done.err
    assert (hub.repositories[NAME].files, hub.repositories[NAME].commits) == (before, 1)


def test_what_is_wrong_is_said_before_the_hub_is_asked(hub: SmallHub, run: Path, tmp_path: Path) -> None:
    """All of it at once: the name, no results, no token, a base model that nobody else has."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    done = python(hub, tmp_path, "-m", "introspection_lit", "push", "run", "no/such/name", token=False)
    assert (done.status, hub.asked) == (2, [])
    for said in ("3 problems", "NAME: ", "has no results.json", "no token for the hub"):
        assert said in done.err


@pytest.fixture
def refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Changes a copy of the run, and says why a dry run refuses it; nothing is written."""

    def refuse(change: Callable[[Path], object], *options: str) -> str:
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        change(copy)
        with pytest.raises(SystemExit) as stop:
            command.main([str(copy), NAME, "--dry-run", str(tmp_path / "out"), *options])
        assert stop.value.code == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return refuse


KNOWN = ("--base-model", BASE, "--license", "mit")


def changed_json(file: Path, **changes: object) -> None:
    """Change fields of a JSON file, and its checksum."""
    content = json.loads(file.read_text()) | changes
    content.pop("sha256")
    file.write_text(json.dumps(with_checksum(content)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "results.json").unlink(), "has no results.json"),
        (lambda run: (run / "results.json").write_text("{"), "not whole JSON"),
        (lambda run: shutil.rmtree(run / "adapter"), "Expected the adapter that a fit exports"),
        (lambda run: (run / "adapter" / "introspection.json").unlink(), "has no introspection.json"),
        (lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"cut"), "cannot be read"),
        (lambda run: (run / "vectors.safetensors").unlink(), "vectors.safetensors is not there"),
        (lambda run: changed_json(run / "results.json", threshold=0.25), "of other weights"),
        (lambda run: changed_json(run / "adapter" / "introspection.json", step=1), "the training step (the results: 3"),
        (lambda run: changed_json(run / "results.json", checkpoint=None), "the untrained model was tested"),
    ],
)
def test_what_cannot_be_published(refused: Callable[..., str], change: Callable[[Path], object], said: str) -> None:
    """No results, no adapter, damaged files, results of another checkpoint."""
    assert said in refused(change, *KNOWN)


def test_what_nobody_else_could_use(refused: Callable[..., str], tmp_path: Path) -> None:
    """A base model in a folder of this machine, and no licence; and a folder with something else in it is kept."""
    assert "Give its hub id with --base-model" in refused(lambda _: None)
    shutil.rmtree(tmp_path / "copy")
    assert "such as --license apache-2.0" in refused(lambda _: None, "--base-model", BASE)


def test_nothing_personal_is_published(dry: Path, run: Path, tmp_path: Path, tiny: Path) -> None:
    """No path of this machine is in any file; the run's own files are full of them."""
    for file in dry.iterdir():
        content = file.read_bytes()
        for place in (run.parents[1], tiny, Path(CONFIG).parent, Path.home()):
            assert f"{place}/".encode() not in content, file.name
    assert str(tiny).encode() in (run / "results.json").read_bytes()
    with safe_open(dry / "vectors.safetensors", "np") as file:
        assert file.metadata()["base_model"] == BASE


def test_names_are_found(refused: Callable[..., str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user and the machine, as words; unless the user says that they are just words."""
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "marguerite")
    monkeypatch.setattr(privacy.platform, "node", lambda: "heldout.example.org")

    def name(folder: Path) -> None:
        changed_json(folder / "results.json", command="fit --trainer.logger.name marguerite")

    printed = refused(name, *KNOWN)
    assert "results.json would say your user name, 'marguerite'" in printed
    assert "README.md would say this machine's name, 'heldout'" in printed
    words = [str(tmp_path / "copy"), NAME, *KNOWN, "--allow", "heldout", "--allow", "marguerite"]
    command.main([*words, "--dry-run", str(tmp_path / "allowed")])
    assert b"marguerite" in (tmp_path / "allowed" / "results.json").read_bytes()


def test_the_card_has_what_the_hub_reads(dry: Path) -> None:
    """The model index has every rate of every test set; licence, base model, limits; as huggingface_hub reads them."""
    results = json.loads((dry / "results.json").read_text())
    card = ModelCard.load(dry / "README.md")
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("apache-2.0", BASE, "peft")
    assert (card.data.pipeline_tag, "alora" in card.data.tags) == ("text-generation", True)
    fields = {"roc_auc": "auroc", "recall": "tpr", "false_positive_rate": "fpr", "accuracy": "accuracy"}
    found = {(r.dataset_type.rpartition("/")[2], fields[r.metric_type]): r.metric_value for r in card.data.eval_results}
    assert found.keys() == {(name, field) for name in ("heldout", "swapped", "factual") for field in fields.values()}
    for (name, field), value in found.items():
        assert value == pytest.approx(results["sets"][name][field], abs=1e-6)
    swapped = results["sets"]["swapped"]["auroc"]
    assert f"with the answer words exchanged has an AUROC of {swapped:.3f}" in card.text.partition("## Limits")[2]
    assert results["versions"]["peft"] in card.text.partition("## Versions")[2]
