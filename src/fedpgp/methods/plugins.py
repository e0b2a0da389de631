"""Methods that are not part of fedpgp: from an installed package, or from a file for a quick trial."""

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

GROUP = "fedpgp.methods"  # the group of entry points
DECORATOR = "Write @dataclass(frozen=True, kw_only=True) from pydantic.dataclasses above the class"
DERIVE = "Derive the class from fedpgp.methods.Method or from a built-in method"
PLAIN = (str, int, float, tuple, frozenset, set)  # types of class attributes that a fingerprint covers
RESERVED = {ALL, EXTENDS, RECIPE, *SECTIONS, *AGGREGATORS}  # names that a method may not have
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # a method's name is also a section of the config and a directory


def installed() -> Mapping[str, EntryPoint]:
    """Return the entry points of methods in installed packages, by name, without importing the methods.

    They cannot replace a built-in method.
    """
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in METHODS}


def is_registered(name: str) -> bool:
    """Whether a method is built in or in an installed package, so that its name is enough to find it."""
    return name in {*METHODS, *installed()}


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Parameters
    ----------
    name
        Name of a built-in method or of a method in an installed package, or "path/to/file.py:Name".

    Raises
    ------
    ConfigError
        The method is unknown, its code cannot be imported, or it does not keep the contract. The error has the nearest
        known name, or the line of the method's code that fails.
    """
    if name in METHODS:
        return METHODS[name]
    if ".py:" in name or name.endswith(".py"):
        return _of_file(name)
    points = installed()
    if name not in points:
        raise ConfigError(
            where="the method",
            allowed="built in, from an installed package, or in a file as path/to/file.py:Name",
            got=name,
            remedy=nearest(name, [*METHODS, *points]),
        )
    point = points[name]
    where = f"method {name!r} of {point.dist.name if point.dist else 'an installed package'} ({point.value})"
    try:
        method = point.load()
    except Exception as error:  # the package's code may raise anything
        raise ConfigError(
            f"it cannot be imported: {raised(error)}", where=where, remedy="Fix or uninstall the package"
        ) from error
    _check(method, where)
    if method.name != name:
        raise ConfigError(
            f"its entry point has the name {name!r}, but its class has the name {method.name!r}",
            where=where,
            remedy="Use the same name for both in the package",
        )
    return method


def _of_file(reference: str) -> type[Method]:
    file, _, name = reference.rpartition(":") if ".py:" in reference else (reference, "", "")
    path = Path(file)
    if not (exists(path) and path.is_file()):
        raise ConfigError(
            f"there is no file {file}",
            where=f"method {reference!r}",
            remedy="Name an existing file as path/to/file.py:Name",
        )
    content = vars(load_file(path))
    written = [key for key, value in content.items() if getattr(value, "__module__", None) == content["__name__"]]
    methods = [key for key in written if _is_method(content[key]) and not inspect.isabstract(content[key])]
    where = f"method file {path}"
    if not methods and (not name or name not in content):
        raise ConfigError(
            "it defines no complete method", where=where, remedy=f"{DERIVE}, and define its abstract functions"
        )
    if not name and len(methods) > 1:
        raise ConfigError(
            f"it defines the methods {', '.join(methods)}",
            where=where,
            remedy=f"Name one of them, for example {file}:{methods[0]}",
        )
    name = name or methods[0]
    if name not in content:
        raise ConfigError(f"it does not define {name!r}", where=where, remedy=nearest(name, methods))
    _check(content[name], f"method {reference!r}")
    return content[name]


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Method)


@contextmanager
def own_errors(method: Method, training: bool = False) -> Iterator[None]:
    """Turn an exception that a user's method raises into a ConfigError with the failing line of the method's code.

    Parameters
    ----------
    method
        The method. Exceptions of built-in methods are not changed.
    training
        Whether exceptions can also have other causes, such as a full disk. These are then not changed. Before training,
        every exception is a consequence of the method.
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
        raise ConfigError(
            f"it fails with {raised(error, file)}", where=f"method {method.name!r}", remedy="Fix the method's code"
        ) from error


def _passed(error: Exception, method: Method) -> bool:
    """Whether an error came through a function that the method inherits from fedpgp, such as `Method.loss`."""
    return any(isinstance(frame.f_locals.get("self"), type(method)) for frame, _ in walk_tb(error.__traceback__))


def fingerprint(method: Method) -> str | None:
    """Return the SHA-256 of the file of a user's method, or None for a built-in method.

    A method that was defined in a notebook or an interactive session has no file. Its SHA-256 is computed from the code
    of its functions and the values of its class attributes.
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
    """Describe the code of a function, or a constant, without its place in a file. It is the same in every process."""
    if inspect.iscode(value):
        return value.co_code.hex(), value.co_names, [_content(constant) for constant in value.co_consts]
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset | set) else repr(value)


def _file(method: Method) -> Path:
    """Return the file of a method's code as tracebacks name it. It does not exist for code in a notebook."""
    try:
        return Path(inspect.getfile(type(method)))
    except (TypeError, OSError):
        return Path(next((function.__code__.co_filename for _, function in _functions(method)), "<none>"))


def _functions(method: Method) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that the method's author wrote, including properties, without the ones from dataclasses."""
    for name, value in _written(method):
        bare = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        function = inspect.unwrap(bare) if callable(bare) else bare
        if not inspect.isfunction(function) or function.__code__.co_filename == "<string>":
            continue
        if function.__module__ == type(method).__module__:
            yield name, function


def _written(method: Method) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of the class and of its bases outside fedpgp, by name."""
    for base in type(method).__mro__:
        if base.__module__.startswith("fedpgp."):
            return
        for name, value in vars(base).items():
            if not name.startswith("__") or callable(value):
                yield f"{base.__qualname__}.{name}", value


def check_instance(method: Method) -> None:
    """Raise ConfigError if a method object cannot be used together with the other methods."""
    _check(type(method), f"method {type(method).__name__}")


def _check(method: Any, where: str) -> None:
    """Raise ConfigError if `method` is not the class of a complete method."""
    if fault := fault_of(method, where):
        raise fault


def fault_of(method: Any, where: str = "the method") -> ConfigError | None:
    """Return the error to raise for `method`, or None if it is the class of a complete method.

    Parameters
    ----------
    method
        The object that must be the class of a method.
    where
        How the error names the method.
    """
    if not _is_method(method):
        return ConfigError(where=where, allowed="a class derived from fedpgp.methods.Method", got=method, remedy=DERIVE)
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        return ConfigError(f"it does not define {missing}", where=where, remedy=f"Define {missing}")
    for attribute in ("name", "source", "year", "venue"):
        if not hasattr(method, attribute):
            return ConfigError(
                f"it has no class attribute {attribute!r}", where=where, remedy=f"Add the class attribute {attribute}"
            )
    if fault := _undeclared(method, where):
        return fault
    if not (isinstance(method.name, str) and NAME.fullmatch(method.name)):
        return ConfigError(
            where=f"the name of {where}",
            allowed="made of lowercase letters, digits, - and _",
            got=method.name,
            remedy="Change its class attribute name",
        )
    if METHODS.get(method.name, method) is not method:
        return ConfigError(
            f"a built-in method has the same name, {method.name!r}", where=where, remedy="Choose another name"
        )
    if method.name in RESERVED:
        return ConfigError(
            f"its name {method.name!r} has another meaning in a config", where=where, remedy="Choose another name"
        )
    try:
        default = method()
    except Exception as error:
        return ConfigError(
            f"it cannot be made without arguments: {raised(error)}", where=where, remedy="Give every field a default"
        )
    for field in dataclasses.fields(default):
        if not _is_toml(value := getattr(default, field.name)):
            return ConfigError(
                where=f"{field.name} of {where}",
                allowed="a number, a string, true or false, or a tuple of these, so that a config file can hold it",
                got=value,
                remedy="Change its type, or make it a class attribute without a type",
            )
    return misread(default, where)


def _undeclared(method: type[Method], where: str) -> ConfigError | None:
    """Return the error for a class whose annotated attributes are not fields of a pydantic dataclass."""
    for base in method.__mro__:
        if base.__module__.startswith("fedpgp."):
            return None
        own = [name for name, kind in inspect.get_annotations(base).items() if "ClassVar" not in str(kind)]
        if "__dataclass_fields__" in vars(base) and "__pydantic_fields__" not in vars(base):
            return ConfigError(
                f"{base.__name__} is a dataclass of the standard library instead of pydantic",
                where=where,
                remedy=DECORATOR,
            )
        if own and "__pydantic_fields__" not in vars(base):
            return ConfigError(
                f"{base.__name__} has the setting {own[0]!r} but is not a dataclass", where=where, remedy=DECORATOR
            )
    return None


def _is_toml(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_toml(item) and item is not None for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def misread(method: Method, where: str = "the method") -> ConfigError | None:
    """Return the error to raise for the attribute `reads` of a method, or None if it is right.

    Parameters
    ----------
    method
        The method.
    where
        How the error names the method.
    """
    known = get_args(Reads)
    if isinstance(method.reads, str):
        return ConfigError(
            where=f"reads of {where}",
            allowed="a tuple",
            got=method.reads,
            remedy=f"Write reads = ({method.reads!r},)",
        )
    reads = {*method.reads}
    for unknown in sorted(reads - {*known}):
        return ConfigError(
            where=f"reads of {where}",
            allowed="a tuple of features that the engine knows",
            got=unknown,
            remedy=nearest(unknown, known),
        )
    if {"patches", "image tower"} <= reads:
        return ConfigError(
            'it reads both "patches" and "image tower", but only one of them is kept of an image',
            where=where,
            remedy="Remove one of them from reads",
        )
    if method.per_example and "text per image" in reads:
        return ConfigError(
            'it is per_example and reads "text per image", which is not possible',
            where=where,
            remedy='Set per_example = False, or remove "text per image" from reads',
        )
    return None
