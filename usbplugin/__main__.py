"""``python -m usbplugin`` is ``usbplugin``."""

import sys

from usbplugin.cli import main

sys.exit(main())
