"""`netsonde version`."""

import platform

import click

from netsonde import __version__


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"netsonde {__version__} (Python {platform.python_version()})")
