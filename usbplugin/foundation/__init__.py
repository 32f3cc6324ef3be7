"""What every package builds on: supervised tasks, directory watches, a pulse, and paths.

Nothing here knows what a serial port is.
"""
