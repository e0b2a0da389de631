"""A federation on Flower: messages, validation of updates, privacy, secure aggregation, simulation and deployment.

It may import runs and all that is below them. Start with `nodes`.
"""

import os

# Flower reads the first when it is imported. Every process that fedpgp starts inherits both.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
