from pathlib import Path

from fedpgp.flower.deployment.server import make_server_app

app = make_server_app(Path(__file__).with_name("experiment.toml"))
