#!/usr/bin/env bash
# jsonargparse 4.49.0: a class_path whose module does not exist is looked up as attributes of the package.
#
# Guess: `class_path: pkg.gone.Thing` needs a module pkg/gone.py, so moving a class breaks every saved configuration.
# Seen:  where `pkg.gone` cannot be imported, jsonargparse reads `gone` as an attribute of `pkg`, also one that a module-level
#        __getattr__ (PEP 562) makes; a package can keep old class paths alive without a file for each former module. Python's
#        own `import pkg.gone` still fails.
# Fails if that changes. Run: bash findings/jsonargparse-class-path.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.49.0'
mkdir "$folder/pkg"
cat > "$folder/pkg/new.py" <<'PYTHON'
class Base:
    pass


class Thing(Base):
    def __init__(self, size: int = 1):
        self.size = size
PYTHON
cat > "$folder/pkg/__init__.py" <<'PYTHON'
from types import SimpleNamespace


def __getattr__(name):
    if name == "gone":
        from pkg.new import Thing

        return SimpleNamespace(Thing=Thing)
    raise AttributeError(name)
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import importlib

from jsonargparse import ArgumentParser

from pkg.new import Base, Thing

parser = ArgumentParser()
parser.add_argument("--thing", type=Base)
parsed = parser.parse_args(["--thing.class_path=pkg.gone.Thing", "--thing.init_args.size=3"])
made = parser.instantiate(parsed).thing
try:
    importlib.import_module("pkg.gone")
    module = "exists"
except ModuleNotFoundError:
    module = "does not exist"
print(f"{parsed.thing.class_path} gives {type(made).__module__}.{type(made).__name__} of size {made.size}; pkg.gone {module}")
assert type(made) is Thing and made.size == 3 and module == "does not exist"
PYTHON
cd "$folder" && "$folder/venv/bin/python" look.py
