"""Methods that are not part of this package: of an installed package, or in a file for a quick trial."""

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from fedpgp.aggregators import AGGREGATORS
from fedpgp.errors import ConfigError, FedPGPError, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.base import Reads

GROUP = "fedpgp.methods"  # of entry points
RESERVED = {"all", "data", "task", "backbone", "federation", *AGGREGATORS}
PREFIX = "fedpgp_method_"  # of the modules that files of methods become
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # of a method: it is a section of the config and a directory


def installed() -> Mapping[str, EntryPoint]:
    """The methods of installed packages, by name, not imported yet; one of ours cannot be replaced."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in METHODS}


def find_method(name: str) -> type[Method]:
    """The class of a method: one of ours, one of an installed package, or "path/to/file.py:Name".

    Raises ConfigError with the nearest name for one that is unknown, and with the line of its own code where somebody
    else's fails.
    """
    if name in METHODS:
        return METHODS[name]
    if ".py:" in name or name.endswith(".py"):
        return _of_file(name)
    points = installed()
    if name not in points:
        raise ConfigError(
            f"method must be a known one, got {name!r}; {nearest(name, [*METHODS, *points])};"
            " or the file of one of your own, as path/to/file.py:Name"
        )
    point = points[name]
    where = f"method {name!r} of {point.dist.name if point.dist else 'an installed package'} ({point.value})"
    try:
        found = point.load()
    except Exception as error:  # whatever somebody else's code raises
        raise ConfigError(f"{where} cannot be imported: {_line(error)}; mend or uninstall the package") from error
    _check(found, where)
    if found.name != name:
        raise ConfigError(f"{where} must have the name of its entry point, its class has {found.name!r}")
    return found


def load_file(path: Path) -> ModuleType:
    """The module that a file of methods is, made once in a process: a class that is made twice cannot be pickled."""
    name = PREFIX + path.resolve().as_posix().encode().hex()
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception):
                raise
            raise ConfigError(f"method file {path} cannot be imported: {_line(error, path)}; mend it") from error
    return sys.modules[name]


def loaded_files() -> list[Path]:
    """The files of methods that this process has loaded, which its worker processes must load too."""
    return [Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith(PREFIX)]


def _of_file(reference: str) -> type[Method]:
    file, _, name = reference.rpartition(":") if ".py:" in reference else (reference, "", "")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"method {reference!r} names the file {file}, which is not there; give path/to/file.py:Name")
    content = vars(load_file(path))
    if not name:
        module = content["__name__"]
        names = [key for key, value in content.items() if _is_method(value) and value.__module__ == module]
        if len(names) != 1:
            raise ConfigError(
                f"method file {path} must have one Method, or be named with one as {file}:Name;"
                f" it has {', '.join(names) or 'none'}"
            )
        name = names[0]
    if name not in content:
        known = [key for key, value in content.items() if _is_method(value) and value.__module__ == content["__name__"]]
        remedy = nearest(name, known) if known else "it has no Method at all"
        raise ConfigError(f"method file {path} has no {name!r}; {remedy}")
    _check(content[name], f"method {reference!r}")
    return content[name]


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Method) and not inspect.isabstract(value)


@contextmanager
def own_errors(method: Method) -> Iterator[None]:
    """Turns what somebody else's method raises before training into a ConfigError with the line of its own code."""
    try:
        yield
    except FedPGPError:
        raise
    except Exception as error:
        if type(method).__module__.startswith("fedpgp."):
            raise
        file = Path(inspect.getfile(type(method)))
        raise ConfigError(f"method {method.name!r} fails: {_line(error, file)}; mend it") from error


def fingerprint(method: Method) -> str | None:
    """SHA-256 of the file that somebody else's method is written in; None for one of ours, which has our version."""
    if type(method).__module__.startswith("fedpgp."):
        return None
    return hashlib.sha256(Path(inspect.getfile(type(method))).read_bytes()).hexdigest()


def check_instance(method: Method) -> None:
    """Raises ConfigError for a method with its settings that cannot stand beside the others."""
    _check(type(method), f"method {type(method).__name__}")


def _check(found: Any, where: str) -> None:
    """Raises ConfigError for what is no complete method."""
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ConfigError(f"{where} must be a class derived from fedpgp.methods.Method, got {found!r}")
    if inspect.isabstract(found):
        raise ConfigError(f"{where} lacks {', '.join(sorted(found.__abstractmethods__))}: write them")
    for attribute in ("name", "source", "year", "venue"):
        if not hasattr(found, attribute):
            raise ConfigError(f"{where} lacks the class attribute {attribute!r}: add it")
    if not NAME.fullmatch(found.name):
        raise ConfigError(f"{where} must have a name of small letters, digits, - and _, got {found.name!r}")
    if found.name in METHODS and METHODS[found.name] is not found:
        raise ConfigError(f"{where} has the name {found.name!r} of a built-in method: choose another")
    if found.name in RESERVED:
        raise ConfigError(
            f"{where} has the name {found.name!r}, which means something else in a config: choose another"
        )
    try:
        method = found()
    except Exception as error:
        raise ConfigError(f"{where} must have a default for every field: {_line(error)}") from error
    if fault := misread(method):
        raise ConfigError(f"{where} {fault}")


def misread(method: Method) -> str | None:
    """What is wrong with what a method declares that it reads."""
    known, reads = get_args(Reads), {*method.reads}
    for what in sorted(reads - {*known}):
        return f"must read what there is, got {what!r}; {nearest(what, known)}"
    if {"patches", "image tower"} <= reads:
        return 'must read "patches" or the "image tower", not both: only one is kept of an image'
    if method.per_example and "text per image" in reads:
        return 'must not be per_example where it reads "text per image"'
    return None


def _line(error: Exception, path: Path | None = None) -> str:
    """What was raised, and in which line of somebody's own code."""
    what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, SyntaxError):
        return f"{what} in line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is None or Path(frame.filename).resolve() == path.resolve()]
    last = (own or frames)[-1]
    return f"{what} in {Path(last.filename).name}, line {last.lineno}: {last.line}"
