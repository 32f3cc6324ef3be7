"""The commands: a module for each, with its flags and its function; ``cli`` joins them.

``wiring`` turns flags into sources, places and a configuration: a new source is wired there.
"""

from usbplugin.commands import (
    check,
    classes,
    completion,
    demo,
    doctor,
    events,
    listing,
    serve,
    suggest,
    virtual,
)
from usbplugin.commands.command import Command

__all__ = ["COMMANDS", "Command"]

COMMANDS: tuple[Command, ...] = (
    serve.COMMAND,
    listing.COMMAND,
    events.COMMAND,
    doctor.COMMAND,
    check.COMMAND,
    suggest.COMMAND,
    classes.COMMAND,
    virtual.COMMAND,
    demo.COMMAND,
    completion.COMPLETION,
    completion.MAN,
)
"""In the order in which ``--help`` shows them."""
