from pathlib import Path

from fedpgp.flower.deployment.app import make_client_app

app = make_client_app(Path(__file__).with_name("experiment.toml"))
