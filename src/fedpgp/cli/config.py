"""`fedpgp config`: print the effective configuration."""

import fedpgp
from fedpgp.cli.options import Changes, ConfigFile


def config(file: ConfigFile = None, change: Changes = None) -> None:
    """Print the effective configuration as TOML, with a description and the origin of each value.

    Examples:
        fedpgp config --set fedpgp.mu=1 > my.toml
    """
    print(fedpgp.load_config(file, change or ()).to_toml(), end="")
