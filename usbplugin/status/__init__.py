"""What a running usbplugin tells about itself: devices, events, health, metrics, a page for people.

It reads, and decides nothing. The one thing that a look brings about is that the kubelet is asked
who holds what, once a second at most.
"""
