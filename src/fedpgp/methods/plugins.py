"""Methods that are not part of this package: of an installed package, or in a file for a quick trial."""

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import walk_tb
from types import FunctionType
from typing import Any, get_args

from fedpgp.aggregators import AGGREGATORS
from fedpgp.errors import ConfigError, FedPGPError, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.base import Reads
from fedpgp.methods.reserved import ALL, EXTENDS, RECIPE, SECTIONS
from fedpgp.runtime.code_files import load_file, own_line, raised
from fedpgp.runtime.files import exists

GROUP = "fedpgp.methods"  # of entry points
DECORATOR = "write @dataclass(frozen=True, kw_only=True) above it, from pydantic.dataclasses"
PLAIN = (str, int, float, tuple, frozenset, set)  # values of class attributes
RESERVED = {ALL, EXTENDS, RECIPE, *SECTIONS, *AGGREGATORS}  # names that a method may not have
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # of a method: it is a section of the config and a directory


def installed() -> Mapping[str, EntryPoint]:
    """The methods of installed packages, by name, not imported yet; one of ours cannot be replaced."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in METHODS}


def is_registered(name: str) -> bool:
    """Whether a method is one of ours or of an installed package, and so found again by its name alone."""
    return name in {*METHODS, *installed()}


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
        method = point.load()
    except Exception as error:  # whatever somebody else's code raises
        raise ConfigError(f"{where} cannot be imported: {raised(error)}; mend or uninstall the package") from error
    _check(method, where)
    if method.name != name:
        raise ConfigError(f"{where} must have the name of its entry point, its class has {method.name!r}")
    return method


def _of_file(reference: str) -> type[Method]:
    file, _, name = reference.rpartition(":") if ".py:" in reference else (reference, "", "")
    path = Path(file)
    if not (exists(path) and path.is_file()):
        raise ConfigError(f"method {reference!r} names the file {file}, which is not there; give path/to/file.py:Name")
    content = vars(load_file(path))
    written = [key for key, value in content.items() if getattr(value, "__module__", None) == content["__name__"]]
    methods = [key for key in written if _is_method(content[key]) and not inspect.isabstract(content[key])]
    if not name and len(methods) != 1:
        raise ConfigError(
            f"method file {path} must have one Method, or be named with one as {file}:Name;"
            f" it has {', '.join(methods) or 'none'}"
        )
    name = name or methods[0]
    if name not in content:
        remedy = nearest(name, methods) if methods else "it has no Method at all"
        raise ConfigError(f"method file {path} has no {name!r}; {remedy}")
    _check(content[name], f"method {reference!r}")
    return content[name]


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Method)


@contextmanager
def own_errors(method: Method, training: bool = False) -> Iterator[None]:
    """Turns what somebody else's method raises into a ConfigError with the line of its own code.

    training: what others raise, such as a disk that is full, passes here, too, and stays as it is; before training
    nobody else is at work, so that what is raised elsewhere comes of what the method gave.
    """
    try:
        yield
    except FedPGPError:
        raise
    except Exception as error:
        if type(method).__module__.startswith("fedpgp."):
            raise
        file = _file(method)
        if training and own_line(error, file) is None and not _passed(error, method):
            raise
        raise ConfigError(f"method {method.name!r} fails: {raised(error, file)}; mend it") from error


def _passed(error: Exception, method: Method) -> bool:
    """Whether an error came through a function of the method that it has from us, such as `Method.loss`."""
    return any(isinstance(frame.f_locals.get("self"), type(method)) for frame, _ in walk_tb(error.__traceback__))


def fingerprint(method: Method) -> str | None:
    """SHA-256 of the file that somebody else's method is written in; None for one of ours, which has our version.

    Of a method that was typed into a notebook or a prompt, there being no file, it is of what its functions do.
    """
    if type(method).__module__.startswith("fedpgp."):
        return None
    file = _file(method)
    if file.exists():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    functions = sorted((name, *_content(function.__code__)) for name, function in _functions(method))
    values = sorted((name, _content(value)) for name, value in _written(method) if isinstance(value, PLAIN))
    return hashlib.sha256(repr((functions, values)).encode()).hexdigest()


def _content(value: Any) -> Any:
    """What a function does or a constant is, without the place where it is written, and the same in every process."""
    if inspect.iscode(value):
        return value.co_code.hex(), value.co_names, [_content(constant) for constant in value.co_consts]
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset | set) else repr(value)


def _file(method: Method) -> Path:
    """The file of a method's code as tracebacks name it; of what was typed into a notebook or a prompt, it is none."""
    try:
        return Path(inspect.getfile(type(method)))
    except (TypeError, OSError):
        return Path(next((function.__code__.co_filename for _, function in _functions(method)), "<none>"))


def _functions(method: Method) -> Iterator[tuple[str, FunctionType]]:
    """Those that its author wrote, also as properties or decorated; what dataclasses make is no code of theirs."""
    for name, value in _written(method):
        bare = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        function = inspect.unwrap(bare) if callable(bare) else bare
        if not inspect.isfunction(function) or function.__code__.co_filename == "<string>":
            continue
        if function.__module__ == type(method).__module__:
            yield name, function


def _written(method: Method) -> Iterator[tuple[str, Any]]:
    """What stands in the class and in its bases that are not ours, by name."""
    for of in type(method).__mro__:
        if of.__module__.startswith("fedpgp."):
            return
        for name, value in vars(of).items():
            if not name.startswith("__") or callable(value):
                yield f"{of.__qualname__}.{name}", value


def check_instance(method: Method) -> None:
    """Raises ConfigError for a method with its settings that cannot stand beside the others."""
    _check(type(method), f"method {type(method).__name__}")


def _check(method: Any, where: str) -> None:
    """Raises ConfigError for what is no complete method."""
    if fault := fault_of(method):
        raise ConfigError(f"{where} {fault}")


def fault_of(method: Any) -> str | None:
    """What is wrong with what should be the class of a method."""
    if not _is_method(method):
        return f"must be a class derived from fedpgp.methods.Method, got {method!r}"
    if inspect.isabstract(method):
        return f"lacks {', '.join(sorted(method.__abstractmethods__))}: write them"
    for attribute in ("name", "source", "year", "venue"):
        if not hasattr(method, attribute):
            return f"lacks the class attribute {attribute!r}: add it"
    if fault := _undeclared(method):
        return fault
    if not (isinstance(method.name, str) and NAME.fullmatch(method.name)):
        return f"must have a name of small letters, digits, - and _, got {method.name!r}"
    if METHODS.get(method.name, method) is not method:
        return f"has the name {method.name!r} of a built-in method: choose another"
    if method.name in RESERVED:
        return f"has the name {method.name!r}, which means something else in a config: choose another"
    try:
        default = method()
    except Exception as error:
        return f"must have a default for every field: {raised(error)}"
    for field in dataclasses.fields(default):
        if not _is_toml(value := getattr(default, field.name)):
            return (
                f"must have settings that a config file can hold, a number, a word, true or false, or a tuple of these,"
                f" got {field.name} = {value!r}: make it one of these, or a class attribute without a type"
            )
    return misread(default)


def _undeclared(method: type[Method]) -> str | None:
    """What is wrong with a class whose settings would be no settings."""
    for of in method.__mro__:
        if of.__module__.startswith("fedpgp."):
            return None
        own = [name for name, kind in inspect.get_annotations(of).items() if "ClassVar" not in str(kind)]
        if "__dataclass_fields__" in vars(of) and "__pydantic_fields__" not in vars(of):
            return f"must have the dataclass of pydantic, {of.__name__} has that of dataclasses: {DECORATOR}"
        if own and "__pydantic_fields__" not in vars(of):
            return f"has the setting {own[0]!r}, which nothing sets, as {of.__name__} is no dataclass: {DECORATOR}"
    return None


def _is_toml(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_toml(item) and item is not None for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def misread(method: Method) -> str | None:
    """What is wrong with what a method declares that it reads."""
    known = get_args(Reads)
    if isinstance(method.reads, str):
        return f"must have a tuple of what it reads, got {method.reads!r}: reads = ({method.reads!r},)"
    reads = {*method.reads}
    for what in sorted(reads - {*known}):
        return f"must read what there is, got {what!r}; {nearest(what, known)}"
    if {"patches", "image tower"} <= reads:
        return 'must read "patches" or the "image tower", not both: only one is kept of an image'
    if method.per_example and "text per image" in reads:
        return 'must not be per_example where it reads "text per image"'
    return None
