"""Federations on Flower: messages, validation of updates, privacy, secure aggregation, simulation and deployment.

This package may import `runs` and the packages below it. Start with `nodes`.
"""

import os

# Flower reads the first variable at import. Every process that fedpgp starts inherits both.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
