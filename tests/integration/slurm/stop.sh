#!/bin/bash
# Ends what start.sh has started in DIR.
for pid in "$1"/slurmctld.pid "$1"/slurmd-*.pid "$1"/munged.pid; do
    if [[ -f $pid ]]; then
        kill "$(cat "$pid")" 2>/dev/null
    fi
done
exit 0
