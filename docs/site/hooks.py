"""Makes a site of documents that are written for reading in the repository; nothing is copied into it.

README, ARCHITECTURE, CONTRIBUTING and CHANGELOG become pages beside those of docs, and links between them are turned
accordingly. Files of the repository that a page links to are part of the site; of a folder it is a page with its files. The
pages of the reference are made from the public names and the options.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from importlib import import_module
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import introspection_lit

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
ASSETS = Path(__file__).parent / "assets"
# What the page of a folder lists.
SHOWN = (".json", ".jsonl", ".png", ".py", ".ipynb")
AT_ROOT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
# A block that runs an example, which has a figure.
EXAMPLE = re.compile(r"^```bash\npython (examples/\w+\.py).*\n```$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A reference of Sphinx in a docstring, as text and as what Markdown makes of it.
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
ROLE_IN_HTML = re.compile(r":\w+:<code>~?(?:[\w.]+\.)?(\w+)</code>")
HOOKS_HIDDEN = "\n    options:\n      members: false"
# The classes whose arguments are options of the command line, by the beginning of their names.
OPTIONS = {
    "--data": "training.options.DataOptions",
    "--data.long": "training.long_options.LongOptions",
    "--data.tasks.NAME": "tasks.task.TaskOptions",
    "--data.curriculum": "trials.curriculum.Curriculum",
    "--data.grid": "trials.grid.Grid",
    "--data.reuse": "training.options.Reuse",
    "--model": "training.module.IntrospectionModule",
    "--model.base": "models.base_model.BaseModel",
    "--model.lora": "models.base_model.Lora",
    "--evidence": "training.callbacks.evidence.Evidence",
    "--checkpoint": "training.callbacks.best_checkpoint.BestCheckpoint",
}


def place(path: Path) -> str:
    """Where a file of the repository is in the site: files of docs and of the root side by side, others below them."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def targets(document: Path) -> dict[str, Path]:
    """What a page links to in the repository, by the link's text."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    return {link: (document.parent / link).resolve() for link in LINK.findall(text)}


def listing(folder: Path) -> str:
    """A page with the files of a folder and of those in it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (*SHOWN, ".md"))
    return "\n".join([f"# {place(folder)}", "", *(f"- [{name}]({name})" for name in names)])


def with_code(command: re.Match[str]) -> str:
    """The command of an example, and its code, folded."""
    code = (ROOT / command[1]).read_text(encoding="utf-8").rstrip().splitlines()
    lines = ["```python", *code, "```"]
    return "\n".join([f'{command[0]}\n\n??? example "{command[1]}"\n', *(f"    {line}".rstrip() for line in lines)])


def public_names() -> str:
    """The page of the public names; of Lightning's modules without the hooks that they fill in."""
    told = "All that `import introspection_lit` offers; [From Python](../python.md) shows how it is used."
    names = sorted(introspection_lit.__all__, key=lambda name: (name[0].islower(), name.lower()))
    parts = [f"::: introspection_lit.{name}" + HOOKS_HIDDEN * name.startswith("Introspection") for name in names]
    return "\n\n".join(["# Python", told, *parts])


def options() -> str:
    """The page of the command line's options, each with its default and what the docstring of its class says."""
    told = (
        "What `fit`, `validate`, `test` and `predict` take, in a configuration or as `--group.name VALUE`; `--help` prints "
        "the same. `--trainer.*` are those of Lightning's `Trainer`."
    )
    lines = ["# Options", told]
    for group, path in OPTIONS.items():
        module, _, name = path.rpartition(".")
        kind = getattr(import_module(f"introspection_lit.{module}"), name)
        parameters = inspect.signature(kind).parameters
        parts = griffe.Docstring(inspect.getdoc(kind) or "").parse("google", warnings=False)
        documented = [each for part in parts if part.kind.value in ("attributes", "parameters") for each in part.value]
        said = [ROLE.sub(r"`\1`", part.value) for part in parts if part.kind.value == "text"]
        lines += [f"## {group}", *said]
        for option in documented:
            if option.name in parameters:
                default = repr(parameters[option.name].default)
                given = f"Default: `{default}`. " if default != "None" and len(default) < 60 and "<" not in default else ""
                lines += [f"### {group}.{option.name}", given + ROLE.sub(r"`\1`", option.description)]
    return "\n\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, what pages link to, the reference and the site's own style."""
    for name in AT_ROOT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, content in (("reference/python.md", public_names()), ("reference/options.md", options())):
        files.append(File.generated(config, name, content=content))
    for path in ASSETS.iterdir():
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    for document in [file.abs_src_path for file in files.documentation_pages() if file.abs_src_path]:
        for target in targets(Path(document)).values():
            add(files, config, target)
    return files


def add(files: Files, config: MkDocsConfig, path: Path) -> None:
    """Add a file or the list of a folder's, unless the site has it."""
    if path.is_dir():
        if f"{place(path)}/README.md" not in files.src_uris and f"{place(path)}/index.md" not in files.src_uris:
            files.append(File.generated(config, f"{place(path)}/index.md", content=listing(path)))
            for inner in path.rglob("*"):
                if inner.is_file() and inner.suffix in SHOWN:
                    add(files, config, inner)
    elif path.is_file() and place(path) not in files.src_uris:
        files.append(File.generated(config, place(path), abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as they are in the repository to where the site has these files."""
    if page.file.abs_src_path is None:
        return markdown
    markdown = EXAMPLE.sub(with_code, markdown)
    if page.file.src_uri == "errors.md":  # messages are long lines
        markdown = markdown.replace("```text", "``` {.text .message}")
        page.meta["search"] = {"boost": 6}  # what is pasted into the search is most often a message
    known = targets(Path(page.file.abs_src_path))
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = known.get(match[1])
        if target is None:
            return match[0]
        uri = place(target)
        if target.is_dir():
            uri += "/README.md" if f"{uri}/README.md" in files.src_uris else "/index.md"
        return posixpath.relpath(uri, here or ".")

    return LINK.sub(turned, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what is left of Sphinx's references into names, with a link where the reference has the name."""

    def named(match: re.Match[str]) -> str:
        code = f"<code>{match[1]}</code>"
        public = match[1] in introspection_lit.__all__
        return f'<a href="python.html#introspection_lit.{match[1]}">{code}</a>' if public else code

    return ROLE_IN_HTML.sub(named, html) if page.file.src_uri.startswith("reference/") else html
