"""Starts Flower's processes from a federation's directory, after looking for what would stop them later."""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import RegisterNodeRequest

from fedpgp.deployment.client import NodeSettings, open_client
from fedpgp.deployment.credentials import check_certificate
from fedpgp.deployment.layout import Layout
from fedpgp.errors import ConfigError, OutputError, TrainingError

PATIENCE = 60.0  # seconds for a server to listen
POLL = 0.1
