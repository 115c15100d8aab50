#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What `make demo` shows: a real qcow2 grows inside a VM. demo.sh IMAGE SIZE; without IMAGE a 20 GiB
# sample is made. A user's image is copied; the original is not touched.
set -eu
image=$1 size=$2 launch=build/instar-launch copy=build/demo.qcow2

if [ -n "$image" ]; then
    echo "Copying $image to $copy: the original stays as it is."
    cp --sparse=always -- "$image" "$copy"
else
    echo "Creating $copy, a qcow2 image of 20 GiB."
    rm -f "$copy"
    qemu-img create -q -f qcow2 "$copy" 20G
fi
show() { echo; echo "\$ instar-launch $*"; "$launch" "$@"; }

show info "$copy"
start=$(date +%s%N)
show resize "$copy" "$size"
end=$(date +%s%N)
echo "(one virtual machine booted, worked and ended in $(((end - start) / 1000000)) ms)"
show info "$copy"
