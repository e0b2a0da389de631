"""Hints for a command line that cannot be parsed."""

import re

import click


def explained(error: click.ClickException) -> str:
    """Return the error message, what was probably meant, and the command that prints the help."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    words = context.command_path.partition(" ")[2] if context else ""
    meant = _setting(error, context) or _names(error, context)
    message = error.format_message().rstrip(".")
    ended = message if message.endswith(("?", "?)")) else f"{message}."
    return f"{ended}{meant} See `{' '.join(['fedpgp', *words.split(), '--help'])}`."


def _setting(error: click.ClickException, context: click.Context | None) -> str:
    """Suggest --set for an option that is a field of the config: --mu 1 becomes --set fedpgp.mu=1."""
    if not isinstance(error, click.NoSuchOption) or context is None or not _takes(context, "--set"):
        return ""
    from fedpgp.config import sections_with

    wanted = error.option_name.lstrip("-").replace("-", "_")
    setting = [f"{section}.{wanted}" for section in sections_with(wanted)]
    if not setting:
        return ""
    if len(setting) > 1:
        return (
            f" Several sections have this setting. Use --set SECTION.{wanted}=…, for example {', '.join(setting[:4])}."
        )
    return f" It is a setting. Use --set {setting[0]}=…."


def _names(error: click.ClickException, context: click.Context | None) -> str:
    """Suggest commas for several names after one option: --methods promptfl fedpgp."""
    from fedpgp.methods import METHODS

    extra = re.match(r"Got unexpected extra arguments? \((.*)\)", error.format_message())
    if extra is None or context is None or not _takes(context, "--methods") or not {*extra[1].split()} <= {*METHODS}:
        return ""
    return " Separate the names with commas, without spaces, as in --methods promptfl,fedpgp."


def _takes(context: click.Context, option: str) -> bool:
    return any(option in parameter.opts for parameter in context.command.params)
