"""What to type instead, for a line that cannot be read."""

import re

import click


def explained(error: click.ClickException) -> str:
    """The error, what was probably meant, and the help of the command that was typed."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    words = context.command_path.partition(" ")[2] if context else ""
    meant = _setting(error, context) or _names(error, context)
    message = error.format_message()
    return f"{message}{meant} (see {' '.join(['fedpgp', *words.split(), '--help'])})"


def _setting(error: click.ClickException, context: click.Context | None) -> str:
    """An option that is a setting: --shots 3 is --set task.shots=3."""
    if not isinstance(error, click.NoSuchOption) or context is None or not _takes(context, "--set"):
        return ""
    from fedpgp.config import sections_with

    wanted = error.option_name.lstrip("-").replace("-", "_")
    setting = [f"{section}.{wanted}" for section in sections_with(wanted)]
    if not setting:
        return ""
    if len(setting) > 1:
        return f" It is a setting of several sections: --set SECTION.{wanted}=…, such as {', '.join(setting[:4])}"
    return f" It is a setting: --set {setting[0]}=…"


def _names(error: click.ClickException, context: click.Context | None) -> str:
    """Several names behind one option: --methods promptfl fedpgp is --methods promptfl,fedpgp."""
    from fedpgp.methods import METHODS

    extra = re.match(r"Got unexpected extra arguments? \((.*)\)", error.format_message())
    if extra is None or context is None or not _takes(context, "--methods") or not {*extra[1].split()} <= {*METHODS}:
        return ""
    return "; names have commas between them and no space: --methods promptfl,fedpgp"


def _takes(context: click.Context, option: str) -> bool:
    return any(option in parameter.opts for parameter in context.command.params)
