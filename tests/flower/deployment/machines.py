"""Machines of a federation: each has its own network, processes, directory /srv and installation of fedpgp."""

import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOME = Path("/srv/fedpgp")
VENV = HOME / ".venv"
DOMAIN = "example.org"
MARK = re.compile(r"\n?<the command ended with (\d+)>\n")
KILLED = re.compile(r"^bash: line \d+:.*Killed.*\n?", re.MULTILINE)  # printed before a later command
# scp between two machines, whose directories are on this one: scp [-r] SOURCE... TARGET
SCP = """#!/bin/sh
place() {{
    case $1 in
        *:/*) echo "{root}/${{1%%.*}}/root${{1#*:}}" ;;
        *:*) echo "{root}/${{1%%.*}}/srv/fedpgp/${{1#*:}}" ;;
        *) echo "$1" ;;
    esac
}}
[ "$1" = -r ] && shift
while [ $# -gt 1 ]; do sources="$sources $(place "$1")"; shift; done
exec cp -r $sources "$(place "$1")"
"""


class Machine:
    """A shell on a machine. Its background jobs have their own process groups, as in an interactive shell."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        self._process = subprocess.Popen(command, env=dict(environment), stdin=pipe, stdout=pipe, stderr=same)

    def run(self, command: str, seconds: float = 300) -> tuple[str, int]:
        """Run a command and return its output and its exit code; raise TimeoutError if it does not end."""
        assert self._process.stdin and self._process.stdout
        prompt = "sleep 0.1; jobs > /dev/null"  # like a prompt, this removes the jobs that have ended
        self._process.stdin.write(f"{prompt}\n{command}\nprintf '\\n<the command ended with %s>\\n' $?\n".encode())
        self._process.stdin.flush()
        text, end = "", time.monotonic() + seconds
        while not (ended := MARK.search(text)):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"`{command}` did not end within {seconds:g} s; it printed: {text}")
            received = os.read(self._process.stdout.fileno(), 1 << 16)
            assert received, f"the shell ended; it printed: {text}"
            text += received.decode(errors="replace")
        return KILLED.sub("", text[: ended.start()]), int(ended[1])

    def end(self) -> None:
        """End the machine and all its processes, as a power failure does."""
        self._process.kill()
        self._process.communicate()


def wheel(source: Path, place: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Build a wheel of fedpgp from a copy of its source in which texts of some files are replaced."""
    copy = place / "source"
    shutil.copytree(source / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(source / name, copy)
    for name, (before, after) in changes.items():
        text = (copy / name).read_text(encoding="utf-8")
        assert before in text, name
        (copy / name).write_text(text.replace(before, after), encoding="utf-8")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=copy, capture_output=True, check=True)
    (built,) = place.glob("*.whl")
    return built


def install(machine: Machine, package: Path) -> None:
    """Make a virtual environment with a wheel of fedpgp; this environment has all other packages."""
    scripts, packages = Path(sys.executable).parent, sysconfig.get_path("purelib")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    programs = "flwr flower-superexec flower-superlink flower-supernode flwr-clientapp flwr-serverapp pip"
    for command in (
        f"{Path(sys.base_prefix, 'bin', python)} -m venv --without-pip {VENV}",
        f"echo {packages} > {VENV}/lib/{python}/site-packages/packages.pth",
        f"for name in {programs}; do sed '1c #!{VENV}/bin/python' {scripts}/$name > {VENV}/bin/$name; done",
        f"chmod +x {VENV}/bin/*",
        f"{VENV}/bin/pip install --quiet --no-index --no-deps --ignore-installed {package}",
    ):
        said, code = machine.run(command)
        assert code == 0, said


@contextmanager
def machines(root: Path, addresses: Mapping[str, str], spaces: Mapping[str, list[str]]) -> Iterator[dict[str, Machine]]:
    """Shells on machines in network namespaces, until the block ends. Then all processes of the machines end.

    Parameters
    ----------
    root
        Directory of the machines' directories: the directory /srv of the machine NAME is root/NAME/srv.
    addresses
        The address of each machine.
    spaces
        For each machine, the words that start a command in its network namespace.
    """
    root.mkdir()
    hosts, programs = root / "hosts", root / "bin"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{to} {name}.{DOMAIN}\n" for name, to in addresses.items()))
    programs.mkdir()
    (programs / "scp").write_text(SCP.format(root=root))
    (programs / "scp").chmod(0o755)
    environment = {
        "HOME": str(HOME),
        "PATH": f"{VENV}/bin:{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    with ExitStack() as stack:
        shells = {}
        for name, space in spaces.items():
            home = root / name / HOME.relative_to("/")
            home.mkdir(parents=True)
            inside = f"mount --bind {root / name / 'srv'} /srv; mount --bind {hosts} /etc/hosts; cd {HOME}; set -m"
            unshared = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
            shells[name] = Machine([*space, *unshared, "bash", "--noprofile", "--norc"], environment)
            stack.callback(shells[name].end)
            said, code = shells[name].run(inside)
            assert code == 0, said
        yield shells
