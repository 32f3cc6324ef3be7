"""A throw-away virtual machine with a real USB stack and a real systemd-udevd.

It boots Debian's kernel in QEMU with this machine's root file system (read-only, below a layer of
memory), so the guest has the same Python, virtual environment and checkout under the same paths.
It runs one command there, shows its output as it comes, and exits with the command's status::

    python -m tests.hardware.vm -- .venv/bin/python -m pytest tests/hardware
    python -m tests.hardware.vm --shell

Only the standard library is used here, so any Python 3.11 can start it.

Choices, each measured on a machine with two cores and no usable KVM:

* Our own few lines rather than virtme-ng (1.42): booting and importing pytest and grpc twice takes
  12 s instead of 35 s. virtme-ng mounts 9p without a cache, so that the second import is no faster
  than the first, and unpacks the kernel inside the guest.
* QEMU starts the uncompressed kernel: emulated code takes 2.4 s to unpack it, the host 0.8 s, once.
* 9p with ``cache=loose``: files do not change below a running guest, or ought not to.
* What is always needed is loaded and mounted from the initramfs: a program that starts over 9p
  takes 70 ms, and modprobe there took 1 s.

KVM is used when asked for by USBPLUGIN_VM_ACCEL=kvm: where it is nested, the guest may hang.
"""
