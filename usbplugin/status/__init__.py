"""What a running usbplugin says about itself: devices, events, health, metrics and a status page.

It only reads. The one side effect of a look is that the kubelet is asked who holds what, at most
once a second.
"""
