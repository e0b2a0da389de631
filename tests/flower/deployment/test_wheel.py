"""The wheel that containers install."""

import base64
import csv
import hashlib
import io
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import fedpgp
from fedpgp.flower.deployment.wheel import write_wheel


def test_the_wheel_has_the_running_package_and_its_metadata_with_the_right_checksums(tmp_path):
    digest = write_wheel(tmp_path)
    (file,) = tmp_path.iterdir()
    with ZipFile(file) as wheel:
        names = set(wheel.namelist())
        contents = {name: wheel.read(name) for name in names if name.endswith((".py", "METADATA", "RECORD", ".txt"))}
    package = Path(fedpgp.__file__).parent
    assert {f"fedpgp/{path.relative_to(package)}" for path in package.rglob("*.py")} < names
    assert not any("__pycache__" in name or name.endswith("direct_url.json") for name in names)
    assert contents["fedpgp/__init__.py"] == (package / "__init__.py").read_bytes()
    info = f"{'-'.join(file.name.split('-')[:2])}.dist-info"
    extras = message_from_bytes(contents[f"{info}/METADATA"]).get_all("Provides-Extra")
    assert "flower" in extras and b"fedpgp = fedpgp.cli:main" in contents[f"{info}/entry_points.txt"]
    assert f"{info}/licenses/LICENSE" in names
    assert digest == hashlib.sha256(contents[f"{info}/RECORD"]).hexdigest()
    rows = list(csv.reader(io.StringIO(contents[f"{info}/RECORD"].decode())))
    assert {name for name, _, _ in rows} == names
    for name, digest, size in rows:
        if digest and name in contents:
            expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(contents[name])))
