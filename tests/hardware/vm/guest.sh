#!/bin/bash
# Process 1 of the guest, after init: starts udevd, runs the host's command, and leaves its exit
# status in /run/vm/exit. Should a step fail, the guest powers off without that file, and the host
# shows the console.
set -eu
trap 'busybox poweroff -f' EXIT
# CHECKOUT, OUTPUT, MODULES, TIMEOUT, TERMINAL, and what the command is to find in its environment.
. /run/vm/environment

ln -s "$MODULES" "/lib/modules/${MODULES##*/}"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 output "$OUTPUT"
echo usbplugin-vm > /proc/sys/kernel/hostname
busybox ip link set lo up

/lib/systemd/systemd-udevd --daemon
# The root hubs and the QMP port are older than udevd.
udevadm trigger --settle --action=add --subsystem-match=usb --subsystem-match=virtio-ports

printf '#!/bin/sh\ncd "%s" && exec .venv/bin/python -m tests.hardware.gadget "$@"\n' "$CHECKOUT" > /run/bin/usbgadget
chmod +x /run/bin/usbgadget
cd "$CHECKOUT"
read -r uptime _ < /proc/uptime
echo "$uptime" > /run/vm/up

if [ -n "$TERMINAL" ]; then
  setsid --ctty --wait bash --rcfile /run/vm/shellrc -i <> /dev/hvc0 >&0 2>&1 || status=$?
else
  output=/dev/virtio-ports/output
  echo "vm: up after $uptime s" > "$output"
  SECONDS=0
  # SIGINT, so that pytest still writes its report.
  timeout --signal=INT --kill-after=20 "$TIMEOUT" bash /run/vm/command \
    < /dev/null > "$output" 2>&1 || status=$?
  if [ "$SECONDS" -ge "$TIMEOUT" ]; then touch /run/vm/late; fi
fi
echo "${status:-0}" > /run/vm/exit
