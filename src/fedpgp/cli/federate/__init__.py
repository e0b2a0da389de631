"""`fedpgp federate`: set up and run a federation across machines, on Flower."""

import typer

from fedpgp.cli.federate.processes import node, server, up
from fedpgp.cli.federate.setup import app_hash, init, key, renew
from fedpgp.cli.federate.status import status
from fedpgp.cli.options import command

app = typer.Typer(
    help="Set up and run a federation across machines, on Flower. docs/deploy.md is the guide.", no_args_is_help=True
)
for function in (init, renew, key, server, node, status, app_hash, up):  # the order of the help
    command(app)(function)
