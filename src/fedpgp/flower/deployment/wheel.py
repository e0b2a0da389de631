"""A wheel of the installed package, from which containers install the same fedpgp without a package index."""

import hashlib
from base64 import urlsafe_b64encode
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

TAGS = "Wheel-Version: 1.0\nGenerator: fedpgp\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
OF_THE_INSTALLER = {"RECORD", "INSTALLER", "REQUESTED", "WHEEL", "direct_url.json"}


def write_wheel(directory: Path) -> str:
    """Write a wheel of the installed fedpgp, which may be an editable installation of a clone.

    Parameters
    ----------
    directory
        Directory to write to.

    Returns
    -------
    str
        SHA-256 of the wheel's content, in hexadecimal digits.
    """
    installed, package = distribution("fedpgp"), Path(__file__).parents[2]
    name = f"fedpgp-{installed.version}"
    files = {path.relative_to(package.parent).as_posix(): path for path in package.rglob("*") if path.is_file()}
    files |= {
        path.as_posix(): Path(str(path.locate()))
        for path in installed.files or ()
        if path.parts[0].endswith(".dist-info")
    }
    contents = {
        file: path.read_bytes()
        for file, path in sorted(files.items())
        if "__pycache__" not in path.parts and path.name not in OF_THE_INSTALLER
    }
    contents[f"{name}.dist-info/WHEEL"] = TAGS.encode()
    record = f"{name}.dist-info/RECORD"
    lines = [f"{file},sha256={_digest(content)},{len(content)}" for file, content in contents.items()]
    contents[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    with ZipFile(directory / f"{name}-py3-none-any.whl", "w") as wheel:
        for file, content in contents.items():
            wheel.writestr(file, content)
    return hashlib.sha256(contents[record]).hexdigest()


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
