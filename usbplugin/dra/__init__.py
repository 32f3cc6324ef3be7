"""The DRA front: devices as a ResourceSlice, claims prepared as CDI specs, health as a stream.

Only ``agent`` imports it, and only if the configuration asks for it: whoever uses the device plugin
alone pays for nothing in here.
"""
