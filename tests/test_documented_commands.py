"""Which commands are found in the documents. That they work, tests/run_documented_commands.py tries (``make test-all``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented_commands import Command, documented_commands, of_document, of_header, of_help
from project_paths import ROOT
from run_documented_commands import NOT_RUN, WHILE, match

PAGE = """Run `make install`, not `model.base`.

```bash
cd scripts
export RUN=here  # a comment
python finetune.py --epochs 1 \\
  --lr 2e-4     # with a reason
any_program --of "a # b"
```

```
$ a prompt
python evaluate.py --adapter x
it printed this
```
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file below a root of its own."""
    monkeypatch.setattr("documented_commands.ROOT", tmp_path)
    return tmp_path / "page"


def test_a_page(written: Path) -> None:
    """Blocks of bash line by line, with what they set; commands alone of other blocks and of inline code."""
    written.write_text(PAGE)
    state = ("cd scripts", "export RUN=here")
    assert list(of_document(written)) == [
        Command("page", "python finetune.py --epochs 1 --lr 2e-4", state),
        Command("page", 'any_program --of "a # b"', state),
        Command("page", "python evaluate.py --adapter x"),
        Command("page", "make install"),
    ]


def test_a_header_and_a_docstring(written: Path) -> None:
    """Options may go on in the next comment."""
    written.write_text("# Purpose: none\n# Command:  python -m a fit --b 1\n#   --c 2\n#   make it\nkey: 1  # python x\n")
    assert [command.text for command in of_header(written)] == ["python -m a fit --b 1 --c 2", "make it"]
    written.write_text('"""A script.\n\n    python script.py --x 1   # why\n\npython is a language.\n"""\n')
    assert [command.text for command in of_help(written)] == ["python script.py --x 1"]


def test_every_configuration_and_script_has_a_command() -> None:
    """And no command is lost: those of README's block stand in the same shell."""
    commands = documented_commands()
    texts = "\n".join(command.text for command in commands)
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "scripts").glob("*.py")]:
        if path.name != "list_models.py":  # for whoever works on the project
            assert path.name in texts
    assert [command.state for command in commands if command.source == "README.md"].count(("cd scripts",)) == 6
    assert len({(command.text, command.state, command.folder) for command in commands}) == len(commands)


@pytest.mark.parametrize("pattern", [*WHILE, *NOT_RUN])
def test_exceptions_are_of_commands_that_there_are(pattern: str) -> None:
    """None is left of a command that was removed."""
    assert any(match({pattern: ""}, command) is not None for command in documented_commands())
