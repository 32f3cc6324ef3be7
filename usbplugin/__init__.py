"""usbplugin: a Kubernetes device plugin for USB serial ports.

The folders read as the data flows: ``discovery`` finds ports, ``inventory`` decides what they are
and how they fare, ``custody`` keeps links, CDI specs and state in step, ``deviceplugin`` tells the
kubelet, and ``agent`` holds them together.
"""

__version__ = "0.1.0"
