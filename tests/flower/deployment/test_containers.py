"""The image, the compose file and the systemd units of `fedpgp federate init`, in real containers.

They need root, podman and podman-compose, as ../shared/containers/prepare installs them. The image is built with this
machine's configuration of pip.
"""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress

import pytest

PROGRAM = shutil.which("podman-compose", path=f"{os.environ['PATH']}:/opt/podman-compose/bin")
COMPOSE = [PROGRAM, "--in-pod=false"]  # Docker has no pods
IMAGE = "fedpgp-ours"
MACHINE = "fedpgp-systemd"
MOST = 1.9e9  # bytes of the image
OWNER = 1234
FILES = ("prompts.safetensors", "results.json", "rounds.jsonl")
SERVER, *NODES = ("fedpgp-server", "fedpgp-node", "fedpgp-node-1")
SYSTEMD = f"""
FROM localhost/{IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends systemd systemd-sysv dbus
ENTRYPOINT ["/sbin/init"]
"""
INSTALL = """
useradd --system fedpgp
chown -R fedpgp: ours
mkdir /etc/fedpgp
cp -a ours/nodes/node-0 /etc/fedpgp/node
cp -a ours/nodes/node-1 /etc/fedpgp/node-1
cp ours/systemd/*.service /etc/systemd/system/
sed 's/fedpgp-node/fedpgp-node-1/; s,/fedpgp/node,/fedpgp/node-1,' ours/systemd/fedpgp-node.service \
    > /etc/systemd/system/fedpgp-node-1.service
"""
SMALL = ("federation.rounds=5", "federation.path_points=3", "task.shots=2")

pytestmark = [
    pytest.mark.by_hand,
    pytest.mark.xdist_group("federation"),
    pytest.mark.skipif(
        not shutil.which("podman") or PROGRAM is None or os.geteuid() != 0,
        reason="podman or podman-compose is missing, or this is not root: call ../shared/containers/prepare",
    ),
]


def run(*words, check=True, **options):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    assert not check or done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def until(true, seconds, what):
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    return result


def building():
    """Return the options with which a build reaches the package index of this machine."""
    options = ["--network", "host"]
    for variable in ("PIP_CERT", "PIP_FIND_LINKS"):
        if place := os.environ.get(variable):
            options += ["-v", f"{place}:{place}:ro", "--env", f"{variable}={place}"]
    return options


def owned(directory):
    for path in (directory, *directory.rglob("*")):
        os.chown(path, OWNER, OWNER)


def rounds(directory):
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    return []


def same(first, second):
    """Return the files of two runs that are not equal, apart from times and bytes on the wire."""

    def content(file):
        if file.suffix == ".safetensors":
            return file.read_bytes()
        text = file.read_text()
        return re.sub(r'"(?:seconds\w*|wire_\w+)": ?(?:[-\d.e]+|null|\{[^}]*\})', "", text)

    return [name for name in FILES if content(first / name) != content(second / name)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A federation of two nodes that belongs to an ordinary user, and its image."""
    place = tmp_path_factory.mktemp("containers")
    for path in (place, *place.parents[:2]):
        path.chmod(0o755)
    options = [word for setting in SMALL for word in ("--set", setting)]
    run("fedpgp", "federate", "init", place / "ours", "--nodes", 2, "--method", "promptfl", *options)
    owned(place / "ours")
    yield place / "ours"
    run("podman", "rmi", "-f", IMAGE, MACHINE, check=False)
    run("podman", "image", "prune", "-f")


def compose(directory, *words, **options):
    build = f"--podman-build-args={' '.join(building())}"
    return run(*COMPOSE, build, "-f", directory / "compose.yaml", *words, cwd=directory, **options)


def elsewhere(directory, *words, **options):
    """Call compose for node-0 with the compose file of the node, in the network in which the server's name is known."""
    here = directory / "nodes" / "node-0"
    network = directory.parent / "network.yaml"
    network.write_text('services: {node: {network_mode: "container:ours_network_1"}}')
    return run(*COMPOSE, "-f", here / "compose.yaml", "-f", network, *words, cwd=here, **options)


def state(name, field="{{.State.Status}}"):
    return run("podman", "inspect", "--format", field, name, check=False).strip()


def test_compose_up_ends_in_a_table_and_a_killed_run_resumes_to_the_same_bytes(image):
    ours = image
    try:
        compose(ours, "up", "-d")
        size = int(run("podman", "image", "inspect", "--format", "{{.Size}}", IMAGE))
        print(f"size of the image: {size / 1e9:.2f} GB")
        assert size <= MOST
        until(lambda: state("ours_experiment_1") == "exited", 900, "the experiment")
        log = run("podman", "logs", "ours_experiment_1")
        print(log)
        assert state("ours_experiment_1", "{{.State.ExitCode}}") == "0"
        assert re.search(r"^promptfl +[0-9]", log, re.MULTILINE) and len(rounds(ours / "runs" / "ours")) == 5

        for name in ("ours_server_1", "ours_node-0_1", "ours_node-1_1"):
            status = run("podman", "exec", name, "sh", "-c", "cat /proc/$(pgrep -o fedpgp || echo 1)/status")
            assert re.search(rf"^Uid:\s+{OWNER}\s", status, re.MULTILINE), status
            assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), status
            run("podman", "healthcheck", "run", name)
            ray = run("podman", "exec", name, "python", "-c", "import importlib.util as u; print(u.find_spec('ray'))")
            assert ray.strip() == "None"
        assert (ours / "runs" / "ours" / "results.json").stat().st_uid == OWNER

        (ours / "runs" / "ours").rename(ours / "runs" / "undisturbed")
        compose(ours, "up", "-d", "experiment")
        until(lambda: len(rounds(ours / "runs" / "ours")) >= 2, 600, "two rounds")
        run("podman", "kill", "ours_node-1_1")
        run("podman", "kill", "ours_server_1")
        finished = len(rounds(ours / "runs" / "ours"))
        until(lambda: state("ours_experiment_1") == "exited", 300, "the end of the run whose server was killed")
        assert finished < 5 and not (ours / "runs" / "ours" / "results.json").exists()
        run("podman", "rm", "-f", "-t", "15", "ours_node-0_1")  # its own compose.yaml replaces it
        elsewhere(ours, "up", "-d")
        compose(ours, "up", "-d", "server", "node-1", "experiment")
        until(lambda: state("ours_experiment_1") == "exited", 900, "the run that continues")
        print(run("podman", "logs", "ours_experiment_1"))
        assert state("ours_experiment_1", "{{.State.ExitCode}}") == "0"
        assert not same(ours / "runs" / "undisturbed", ours / "runs" / "ours")
        print(f"killed after {finished} rounds and resumed: {', '.join(FILES)} are equal")

        run("kill", "-KILL", state("node-0_node_1", "{{.State.Pid}}"))
        until(lambda: state("node-0_node_1", "{{.RestartCount}}") == "1", 180, "the restart of a node that died")
        elsewhere(ours, "down", "-v")

        certificate = ours / "server" / "server.crt"
        valid = certificate.read_bytes()
        certificate.write_text("")
        run("podman", "restart", "-t", "15", "ours_server_1")
        until(lambda: "exit code 2" in run("podman", "logs", "ours_server_1"), 180, "the report of exit code 2")
        print(run("podman", "logs", "--tail", 3, "ours_server_1"))
        assert state("ours_server_1") == "running"
        assert run("podman", "healthcheck", "run", "ours_server_1", check=False)
        certificate.write_bytes(valid)
        run("podman", "restart", "-t", "15", "ours_server_1")
        until(lambda: not run("podman", "healthcheck", "run", "ours_server_1", check=False), 180, "the server's health")
    finally:
        started = time.monotonic()
        elsewhere(ours, "down", "-v", check=False)
        compose(ours, "down", "-v", check=False)
        print(f"all containers are stopped and removed after {time.monotonic() - started:.0f} s")
    for what in (("ps", "-a"), ("volume", "ls"), ("network", "ls")):
        assert not re.search("ours|node-0", run("podman", *what))


@pytest.fixture
def machine(image):
    """A machine with systemd, without a network, whose /srv is a directory of this machine."""
    place = image.parent / "machine"
    place.mkdir()
    compose(image, "build")
    (place / "Dockerfile").write_text(SYSTEMD)
    run("podman", "build", "--network", "host", "-t", MACHINE, place)
    started = ["--systemd=always", "--privileged", "--network", "none", "-v", f"{place}:/srv", "-w", "/srv"]
    run("podman", "run", "-d", "--name", MACHINE, *started, f"localhost/{MACHINE}")
    try:
        yield place
    finally:
        run("podman", "rm", "-f", "-t", "0", MACHINE)


def inside(*words, **options):
    return run("podman", "exec", MACHINE, *words, **options)


def has(unit, **state):
    """Return whether systemd's properties of a unit have these values."""
    lines = inside("systemctl", "show", *(f"-p{name}" for name in state), unit).splitlines()
    return set(lines) == {f"{name}={value}" for name, value in state.items()}


def listens(times):
    said = inside("journalctl", "--no-pager", "-u", SERVER)
    return said.count("the server listens") >= times


def test_the_units_start_again_after_a_kill_but_not_after_exit_code_2(machine):
    until(lambda: "running" in inside("systemctl", "is-system-running", check=False), 180, "systemd")
    options = [word for setting in SMALL for word in ("--set", setting)]
    inside("fedpgp", "federate", "init", "ours", "--nodes", 2, "--method", "promptfl", *options)
    ours = machine / "ours"
    inside("sh", "-euc", INSTALL)
    for unit in (SERVER, *NODES):
        inside("systemctl", "enable", "--now", unit)
        exposure = inside("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        print(exposure)
        assert float(re.search(r": ([\d.]+) ", exposure)[1]) <= 3
    until(lambda: listens(1), 180, "the server")

    def flwr_run(output):
        home = ["env", "FLWR_HOME=/srv/ours/flwr", "HOME=/tmp", "FLWR_TELEMETRY_ENABLED=0"]
        user = ["podman", "exec", MACHINE, "runuser", "-u", "fedpgp", "--", *home]
        return [*user, "flwr", "run", "ours/app", "ours", "--stream", "--run-config", f'output="runs/{output}"']

    run(*flwr_run("ours"))
    with subprocess.Popen(flwr_run("again"), stdin=subprocess.DEVNULL) as first:
        until(lambda: len(rounds(ours / "runs" / "again")) >= 2, 600, "two rounds")
        for unit in (NODES[1], SERVER):
            inside("systemctl", "kill", "-s", "KILL", "--kill-whom=main", unit)
        finished = len(rounds(ours / "runs" / "again"))
        first.wait(timeout=300)
    assert finished < 5
    for unit in (NODES[1], SERVER):
        until(lambda unit=unit: has(unit, NRestarts=1, ActiveState="active"), 180, f"a restart of {unit}")
    until(lambda: listens(2), 180, "the server")
    print(run(*flwr_run("again")))
    assert not same(ours / "runs" / "ours", ours / "runs" / "again")
    print(f"killed after {finished} rounds, restarted and resumed: {', '.join(FILES)} are equal")

    run("podman", "restart", "-t", "15", MACHINE)
    until(lambda: listens(1), 180, "the server after the machine has restarted")
    assert all(has(unit, ActiveState="active") for unit in (SERVER, *NODES))
    started = time.monotonic()
    inside("systemctl", "stop", SERVER, *NODES)
    assert not inside("find", "/proc", "-maxdepth", "1", "-user", "fedpgp")
    print(f"all units are stopped after {time.monotonic() - started:.0f} s")

    certificate = ours / "server" / "server.crt"
    valid = certificate.read_bytes()
    certificate.write_text("")
    inside("systemctl", "start", SERVER)
    until(lambda: has(SERVER, ActiveState="failed"), 180, "the report of exit code 2")
    print(inside("systemctl", "status", "--no-pager", SERVER, check=False))
    assert has(SERVER, ExecMainStatus=2, NRestarts=0)
    certificate.write_bytes(valid)
    inside("systemctl", "restart", SERVER)
    until(lambda: listens(2), 180, "the server after its certificate was corrected")
