"""Upgrade of a federation's directory to the installed version of fedpgp."""

import tomllib

from fedpgp.errors import OutputError
from fedpgp.flower.deployment.app_policy import EXPERIMENT, PYPROJECT, own_code, project
from fedpgp.flower.deployment.client import configured
from fedpgp.flower.deployment.layout import FederationLayout, accessible, cause, write_image
from fedpgp.runtime.files import write


def upgrade(layout: FederationLayout) -> None:
    """Write the code of a federation's app, and the files of its image, as the installed version of fedpgp writes them.

    The experiment stays as it is, as do the app's name and configuration, and all other files.

    Parameters
    ----------
    layout
        The federation.

    Raises
    ------
    OutputError
        If the directory has no app of fedpgp, or a file cannot be written.
    ConfigError
        If the installed version cannot read the experiment.
    """
    file = layout.app / PYPROJECT
    try:
        about = tomllib.loads(file.read_text(encoding="utf-8"))
        config = about["tool"]["flwr"]["app"]["config"]
        method, seed, output = str(config["method"]), int(config["seed"]), str(config["output"])
        written = project(str(about["project"]["name"]), method, seed, output)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"this is not the directory of a federation: {file} cannot be read ({cause(error)})",
            where=str(layout.directory),
            remedy="Use a directory that fedpgp federate init wrote",
        ) from error
    configured(layout.app / EXPERIMENT, method)
    with accessible(layout.directory):
        for path, content in {**own_code(), PYPROJECT: written}.items():
            write(layout.app / path, content)
        if layout.image.exists():
            write_image(layout.image)
