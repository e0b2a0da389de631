"""`fedpgp config`: print the effective configuration."""

import fedpgp
from fedpgp.cli.option_groups import ExperimentOptions, with_options
from fedpgp.cli.printing import next_command, typed


@with_options(ExperimentOptions)
def config(*, options: ExperimentOptions) -> None:
    """Print the effective configuration as TOML, with a description and the origin of each value.

    Examples:
        fedpgp config --set fedpgp.mu=1 > my.toml
    """
    print(fedpgp.load_config(options.config, options.changes).to_toml(), end="")
    next_command("compare", *typed())
