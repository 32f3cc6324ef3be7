"""What all rooms stand on: supervised tasks, directory watches, a pulse, and where things are.

Nothing in here knows what a serial port is.
"""
