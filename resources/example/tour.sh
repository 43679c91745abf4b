#!/bin/sh
# What a container sees inside its microVM. Few processes: each costs.
echo "kernel of the guest:   $(uname -r) (host name $(hostname))"
echo "processes:"
ps
echo "root file system:"
ls /
