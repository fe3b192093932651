#!/bin/bash
# Starts or restarts training in the background at the lowest priority. Does nothing while it is already running.
here="$(cd "$(dirname "$0")" && pwd)"; cd "$here"
flock -n .lock true || { echo "already running"; exit 0; }
setsid nohup nice -n 19 flock -n .lock bash stages.sh > stages.log 2>&1 < /dev/null &
sleep 1; echo "started; see vae.log and unet.log"
