"""What to say of a path that is of no layout."""

from pathlib import Path

from fedpgp.data.sources import folder, table

ELSE = "(docs/data.md; fedpgp data layouts lists what else is read)"


def why_none(path: Path) -> str:
    """What is wrong with a path that no layout recognises, and what to do, in a line."""
    if folder.is_image(path.name) and path.is_file():
        return f"{path} is an image: name the directory with a folder for each class {ELSE}"
    if not path.is_dir():
        return f"{path} is no table ({', '.join(table.SUFFIXES)}): name one, or a directory of images {ELSE}"
    names = sorted(entry.name for entry in path.iterdir() if not folder.hidden(entry.name) and entry.is_file())
    listed = [name for name in names if Path(name).suffix.lower() in table.SUFFIXES]
    images = sum(map(folder.is_image, names))
    remedy = f"put {'them' if images else 'images'} in a folder for each class, {path}/CLASS/…"
    if listed:
        remedy += f", or name the table that says what they are, such as {path / listed[0]}"
    if not images:
        return f"{path} holds no image: {remedy} {ELSE}"
    folders = "no folder with images" if folder.folders(path) else "no folders"
    return f"{path} holds {images:,} image{'s' if images > 1 else ''} and {folders}: {remedy} {ELSE}"
