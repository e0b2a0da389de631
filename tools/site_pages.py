"""Pages of the site that are not in docs/, as a hook of mkdocs (see mkdocs.yml).

These pages are the README as home page, the command line, the public API, the settings, the notebooks with their
outputs, and the files of the repository that pages link to.
"""

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import fedpgp
import typer
from fedpgp import cli
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MARKUP = re.compile(r"\[/?(?:bold)?\]")
HOME = "README.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made: dict[str, str | bytes] = {
        "reference/api.md": api(),
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "index.md": (ROOT / HOME).read_text(encoding="utf-8"),
    }
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made |= pages_of(notebook)
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    waiting = [(HOME, str(made["index.md"]))]
    waiting += [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    seen = {HOME}
    while waiting:
        origin, text = waiting.pop()
        for target in linked(origin, text):
            if target not in seen:
                seen.add(target)
                content = (ROOT / target).read_text(encoding="utf-8")
                if not target.endswith(".md"):
                    content = f"# {posixpath.basename(target)}\n\n`{target}`\n\n{fenced(content, target)}\n"
                files.append(File.generated(config, page_of(target), content=content))
                waiting.append((target, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links to files of the repository and to notebooks into links to their pages."""
    place = page.file.src_uri
    origin = HOME if place == "index.md" else place.removeprefix("repository/").removesuffix(".md")
    if place.startswith("repository/"):
        origin = next(name for name in (origin, f"{origin}.md") if (ROOT / name).is_file())
    elif origin != HOME:
        origin = f"docs/{place}"

    def changed(match: re.Match[str]) -> str:
        text, link = match.groups()
        target, anchor = resolved(origin, link)
        if target is not None and target.startswith("docs/notebooks/"):
            goal = target.removeprefix("docs/").replace(".ipynb", ".md")
            return f"[{text}]({posixpath.relpath(goal, posixpath.dirname(place) or '.')}{anchor})"
        if target is None or (target.startswith("docs/") and origin.startswith("docs/")):
            return match[0]
        if not (ROOT / target).is_file():
            return text
        goal = target.removeprefix("docs/") if target.startswith("docs/") else page_of(target)
        return f"[{text}]({posixpath.relpath(goal, posixpath.dirname(place) or '.')}{anchor})"

    return outside_fences(markdown, lambda part: LINK.sub(changed, part))


def outside_fences(text: str, change: Any) -> str:
    """Apply a change to all text outside of code blocks."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def resolved(origin: str, link: str) -> tuple[str | None, str]:
    """Return the path in the repository of the target of a link, or None for other targets, and the anchor."""
    target, _, anchor = link.partition("#")
    if not target or ":" in target or target.startswith("/"):
        return None, ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path, f"#{anchor}" if anchor else ""


def linked(origin: str, text: str) -> Iterator[str]:
    """Return the files outside docs/ that pages link to, by their path in the repository."""
    for _, link in LINK.findall(FENCE.sub("", text)):
        target, _ = resolved(origin, link)
        if target is not None and not target.startswith(("docs/", "..")) and (ROOT / target).is_file():
            yield target


def page_of(target: str) -> str:
    if target == HOME:
        return "index.md"
    return f"repository/{target}" if target.endswith(".md") else f"repository/{target}.md"


def fenced(content: str, name: str) -> str:
    language = {".py": "python", ".toml": "toml"}.get(posixpath.splitext(name)[1], "text")
    return f"````{language}\n{content.rstrip()}\n````"


def api() -> str:
    """Return the page about all public names, functions before classes."""
    names = [name for name in fedpgp.__all__ if not name.startswith("_")]
    classes = [name for name in names if inspect.isclass(getattr(fedpgp, name))]
    functions = [name for name in names if name not in classes]
    text = "# Python\n\nPublic names of `import fedpgp`. Functions print nothing unless they get a `reporter`.\n"
    for name in (*functions, *classes):
        made = getattr(fedpgp, name)
        text += f"\n::: {made.__module__}.{made.__qualname__}\n"
    return text


def pages_of(notebook: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook and its pictures, by their path in the site."""
    files = f"{notebook.stem}_files"
    text, made = MarkdownExporter().from_filename(str(notebook), {"output_files_dir": files})
    title, _, rest = text.partition("\n")
    text = f'{title}\n\n<a href="{notebook.name}" download>The notebook</a>\n{rest}'
    return {
        f"notebooks/{notebook.stem}.md": text,
        **{f"notebooks/{name}": one for name, one in made["outputs"].items()},
    }


def settings() -> str:
    return (
        "# Settings\n\nThe output of `fedpgp config`: each setting with its value in the embedded recipe, its"
        " description, and the origin of the value. `--set SECTION.KEY=VALUE` changes a setting.\n\n"
        f"```toml\n{fedpgp.load_config().to_toml().rstrip()}\n```\n"
    )


def commands() -> str:
    """Return the page with the help of every command."""
    group = typer.main.get_command(cli.app)
    text = "# Command line\n\nExit codes: 0 success, 1 a check failed, 2 bad input, 130 interrupted.\n"
    for words, command in walk(group, ("fedpgp",)):
        text += "\n" + one_command(words, command)
    return text


def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name in command.commands:
            yield from walk(command.commands[name], (*words, name))
    elif not command.hidden:
        yield words, command


def one_command(words: tuple[str, ...], command: Any) -> str:
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join([*words, "[OPTIONS]", *((a.metavar or a.name).upper() for a in arguments)])
    lines = [f"## {' '.join(words)}", "", f"`{usage}`", "", MARKUP.sub("", inspect.cleandoc(command.help or "")), ""]
    rows = [row(parameter) for parameter in parameters if "--help" not in parameter.opts]
    if rows:
        lines += ["| option | default | description |", "| --- | --- | --- |", *rows, ""]
    if command.epilog:
        lines += [re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", command.epilog).replace("   `", " `"), ""]
    return "\n".join(lines)


def row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    shown = getattr(parameter, "show_default", None)
    default = parameter.default
    if isinstance(shown, str):
        text = shown
    elif parameter.required:
        text = "needed"
    elif default is None or callable(default) or default is False:
        text = ""
    else:
        text = str(getattr(default, "value", default))
    described = MARKUP.sub("", getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    return f"| `{name}` | {f'`{text}`' if text else ''} | {described.replace('<', '&lt;')} |"
