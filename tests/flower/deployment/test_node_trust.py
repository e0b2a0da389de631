"""Live nodes with a hostile server: which code the server can run on them, and what they send."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import fedpgp
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import local_federation
from fedpgp.flower.deployment.processes import SCRIPTS, environment

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import new_federation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]

SETTINGS = ["task.clients=2", "task.shots=4", "federation.rounds=1", "federation.path_points=1"]
SERVER_APP = """
import json
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=60)
    Path({answers!r}).write_text(json.dumps([one.error.reason if one.has_error() else "ran" for one in replies]))
"""
CLIENT_APP = """
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

Path({executed!r}).write_text("foreign code")
app = ClientApp()
app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
"""
METHOD = """
import os
from fedpgp.methods import METHODS

with open({executed!r}, "a") as file:
    file.write(os.environ["FLWR_HOME"] + "\\n")

class Evil(METHODS["promptfl"]):
    '''Evil.'''

    name = "evil"
"""


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "time is over before a condition held"
        time.sleep(0.2)


def submit(layout: FederationLayout, app: Path, *options: str) -> int:
    command = [str(SCRIPTS / "flwr"), "run", str(app), "local", "--format", "json", *options]
    done = subprocess.run(command, env=environment(layout.flwr), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout)["run-id"])


def environments() -> list[str]:
    """Return the environment variables of all processes."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            found.append(place.read_bytes().decode(errors="replace"))
    return found


def test_whoever_holds_the_server_runs_no_code_on_a_live_node(tmp_path, cache):
    """The server sends a foreign app, then a method in a file that the nodes can read; its own run succeeds."""
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, [*SETTINGS, "federation.deadline=20"])
    logs = [layout.logs / f"node-{client}.log" for client in range(2)]
    foreign = Path(shutil.copytree(layout.app, tmp_path / "foreign"))
    answers, executed, method = tmp_path / "answers.json", tmp_path / "executed", tmp_path / "method.py"
    (foreign / "federation" / "server_app.py").write_text(SERVER_APP.format(answers=str(answers)))
    (foreign / "federation" / "client_app.py").write_text(CLIENT_APP.format(executed=str(executed)))
    method.write_text(METHOD.format(executed=str(executed)))
    with local_federation(layout, 2, str(cache)) as federation:
        wait(lambda: federation.online() == 2)
        submit(layout, foreign)
        wait(answers.exists)
        assert [reason.partition(".")[0] for reason in json.loads(answers.read_text())] == ["INVALID_FAB in query"] * 2
        assert not executed.exists()
        for log in logs:
            assert "the file federation/server_app.py" in log.read_text()
        started = [variables for variables in environments() if f"FLWR_HOME={layout.directory}" in variables]
        assert len(started) >= 6  # the server, two nodes, and their child processes
        assert all("FLWR_TELEMETRY_ENABLED=0" in each and "UPDATE_CHECK=1" in each for each in started)
        options = ["--run-config", f'method="{method}:Evil" output="{layout.runs}/evil"']
        submit(layout, layout.app, *options)
        for log in logs:
            wait(lambda log=log: f"got '{method}:Evil'" in log.read_text())
        assert {*executed.read_text().split()} == {str(layout.flwr)}  # only the server's process ran the code
        federation.complete(layout.runs / "local", pytest.fail)
    (record,) = fedpgp.load_run(layout.runs / "local").rounds
    assert record["participants"] == [0, 1]
    assert "refused" not in record
