"""Import Python files of users, such as methods, as modules of this process."""

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from fedpgp.errors import ConfigError

PREFIX = "fedpgp_method_"  # prefix of the modules that are made from files of methods


def load_file(path: Path) -> ModuleType:
    """Return the module of a file of methods.

    A process imports each file once, because a class that is made twice cannot be pickled.

    Parameters
    ----------
    path
        The Python file.

    Raises
    ------
    ConfigError
        The file raises an error.
    """
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
            raise ConfigError(
                f"the method file cannot be imported: {raised(error, path)}", where=str(path), remedy="Correct the file"
            ) from error
    return sys.modules[name]


def loaded_files() -> list[Path]:
    """Return the files of methods that this process has loaded; its worker processes must load them, too."""
    return [Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith(PREFIX)]


def own_line(error: Exception, path: Path) -> str | None:
    """Return the last line of a file in a traceback, such as "x.py, line 3: pass", also from a worker process."""
    passed = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    # A worker sends its traceback as text.
    passed += re.findall(r'^ *File "(.*)", line (\d+), in .*\n *(.*)$', str(error.__cause__ or ""), re.MULTILINE)
    own = [
        f"{path.name}, line {number}: {code}" for name, number, code in passed if Path(name).resolve() == path.resolve()
    ]
    return own[-1] if own else None


def raised(error: Exception, path: Path | None = None) -> str:
    """Describe an error and the line of the user's code that raised it."""
    what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, SyntaxError):
        return f"{what} in line {error.lineno}"
    if path is not None and (there := own_line(error, path)):
        return f"{what} in {there}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{what} in {Path(last.filename).name}, line {last.lineno}: {last.line}"
