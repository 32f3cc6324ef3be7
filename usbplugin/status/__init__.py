"""What a running usbplugin says about itself: devices, events, health, metrics and a status page.

It decides nothing. A look has one side effect: the kubelet is asked who holds what, at most once a
second. ``nodefeatures`` alone writes something, a file for Node Feature Discovery.
"""
