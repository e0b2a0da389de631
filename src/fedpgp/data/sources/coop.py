"""Data sets whose splits CoOp (Zhou et al. 2022) published as a JSON file beside the images."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpgp.data.decode import FilePictures
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import renamed
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

FILES = "split_zhou_*.json"
SPLITS = ("train", "val", "test")
OUTSIDE = re.compile(r"^\s*$|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


@dataclass(frozen=True)
class CoOpForm:
    """What CoOp knows of a data set beside its file. images: the directory of its images, relative to the file."""

    name: str
    images: str
    template: str = "a photo of a {}."


FORMS: Mapping[str, CoOpForm] = {
    "Caltech101": CoOpForm("caltech101", "101_ObjectCategories"),
    "OxfordPets": CoOpForm("oxford_pets", "images", "a photo of a {}, a type of pet."),
    "OxfordFlowers": CoOpForm("oxford_flowers", "jpg", "a photo of a {}, a type of flower."),
    "DescribableTextures": CoOpForm("dtd", "images", "{} texture."),
    "Food101": CoOpForm("food101", "images", "a photo of {}, a type of food."),
    "EuroSAT": CoOpForm("eurosat", "2750", "a centered satellite photo of {}."),
    "UCF101": CoOpForm("ucf101", "UCF-101-midframes", "a photo of a person doing {}."),
    "StanfordCars": CoOpForm("stanford_cars", "."),
    "SUN397": CoOpForm("sun397", "SUN397"),
}


def recognises(path: Path) -> bool:
    """Such a file, or a directory that holds one."""
    if path.is_dir():
        return any(path.glob(FILES))
    return path.is_file() and path.match(FILES)


def read(path: Path, data: "DataConfig") -> Listing:
    """All images that the file names; raises DataError for a file that is damaged or does not fit the images."""
    file = _file(path)
    entries = _entries(file)
    names: dict[int, str] = {}
    paths: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    for number, split in enumerate(SPLITS):
        for place, entry in enumerate(entries[split]):
            where = f"{file}: entry {place} of {split}"
            image, label, name = _checked(entry, where)
            if names.setdefault(label, name) != name:
                raise DataError(
                    f"{where}: label {label} is named {name!r} and before {names[label]!r}: give it one name"
                )
            paths.append(image)
            labels.append(label)
            splits.append(number)
    if not paths:
        raise DataError(f"{file}: names no image: get the file from CoOp again")
    if max(names) != len(names) - 1:
        lacking = next(label for label in range(len(names)) if label not in names)
        raise DataError(
            f"{file}: its {len(names)} labels must be 0 to {len(names) - 1}, and {lacking} is missing: number them anew"
        )
    form = FORMS.get(
        file.stem.removeprefix("split_zhou_"), CoOpForm(file.stem.removeprefix("split_zhou_").lower(), ".")
    )
    pictures = FilePictures.of(_root(file, form, paths[0]), paths, str(file))
    return Listing(
        name=form.name,
        where=str(file),
        pictures=pictures,
        class_names=renamed([names[label] for label in range(len(names))], str(file), data),
        labels=np.array(labels, dtype=np.int64),
        splits=np.array(splits, dtype=np.int64),
        templates=(form.template,),
    )


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob(FILES))
    if not files:
        raise DataError(f"{path}: holds no {FILES}: get it from CoOp, or set data.layout")
    if len(files) > 1:
        raise DataError(
            f"{path}: holds {len(files)} split files, among them {files[0].name} and {files[1].name}: give one of them"
            " as data.source"
        )
    return files[0]


def _entries(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; make it readable") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON ({error}): get the file from CoOp again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise DataError(f"{file}: must be an object with the lists train, val and test: get the file from CoOp again")
    return content


def _checked(entry: Any, where: str) -> tuple[str, int, str]:
    match entry:
        case [str() as image, int() as label, str() as name] if not isinstance(label, bool) and label >= 0:
            pass
        case _:
            raise DataError(
                f"{where}: must be a list of path, label from 0 and class name, got {json.dumps(entry)[:80]}: mend it"
            )
    if OUTSIDE.search(image) or "\0" in image:
        raise DataError(f"{where}: the path must be relative and stay below the images, got {image!r}: mend it")
    return image, label, name


def _root(file: Path, form: CoOpForm, image: str) -> Path:
    """The first of the usual directories that holds an image of the file."""
    folders = dict.fromkeys((form.images, ".", "images"))
    places = [file.parent / folder for folder in folders]
    root = next((place for place in places if os.path.lexists(place / image)), None)
    if root is None:
        tried = ", ".join(str(place) for place in places)
        raise DataError(
            f"{file}: its first image {image} is missing in {tried}: put the images into the first of these"
        )
    return root
