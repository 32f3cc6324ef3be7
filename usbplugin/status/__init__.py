"""What a running usbplugin tells about itself: devices, events, health, metrics, a page for people.

It reads, and decides nothing: nothing that changes state can be reached from here.
"""
