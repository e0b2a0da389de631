"""Upgrade of a federation's directory to the installed version of fedpgp."""

from fedpgp.flower.deployment.app_policy import EXPERIMENT, PYPROJECT, own_code, project
from fedpgp.flower.deployment.client import configured
from fedpgp.flower.deployment.layout import FederationLayout, accessible, write_image
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
    app = layout.app_settings
    configured(layout.app / EXPERIMENT, app.method)
    with accessible(layout.directory):
        for path, content in {**own_code(), PYPROJECT: project(*app)}.items():
            write(layout.app / path, content)
        if layout.image.exists():
            write_image(layout.image)
