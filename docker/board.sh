#!/bin/sh
# A container in the role of a board: its sshd, with the key that the service `keys` has made. Segmentation offload is off,
# so that a captured packet is one on the wire.
set -eu
ethtool -K eth0 tso off gso off gro off || true
install -d -m 0700 -o pi -g pi /home/pi/.ssh
install -m 0600 -o pi -g pi /keys/id.pub /home/pi/.ssh/authorized_keys
install -m 0600 /keys/host /etc/ssh/host_key
exec /usr/sbin/sshd -D -e -h /etc/ssh/host_key -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no
