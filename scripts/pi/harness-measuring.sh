#!/bin/sh
# Settings under which a board is measured; run at every start. What a board does not have is left alone.
set -u
. /etc/default/harness-measuring

# The processor's frequency does not follow its load.
for governor in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do
    [ -w "$governor" ] && echo performance >"$governor"
done

# Wi-Fi does not sleep between packets.
[ -d "/sys/class/net/$HARNESS_INTERFACE/wireless" ] && iw dev "$HARNESS_INTERFACE" set power_save off

# A packet is captured as it is on the wire, not joined with others.
ethtool -K "$HARNESS_INTERFACE" tso off gso off gro off
exit 0
