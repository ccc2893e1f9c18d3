#!/usr/bin/env bash
# csi-sanity against the real driver, socket and loop devices: pools with reflink (XFS) and without (ext4), volumes
# as mounts and as raw blocks. Fails on any failed test and on anything left behind. Needs root.
#
#   tests/sanity.sh target/debug/holdfast [xfs|ext4 [mount|block]]
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 BINARY [xfs|ext4 [mount|block]]" >&2; exit 2; }
if [ -z "${HOLDFAST_SANITY_NAMESPACE:-}" ]; then
    # A mount namespace of our own: our mounts are not visible outside, and end with this script.
    HOLDFAST_SANITY_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi
# Shared in it, as on a machine with systemd: the driver stages nothing where other processes would not see it.
mount --make-rshared /

top=$(cd "$(dirname "$0")/.." && pwd)
binary=$(realpath "$1")
filesystems=${2:-xfs ext4}
types=${3:-mount block}
export PATH=$top/.tools/bin:$PATH:/usr/sbin:/sbin
command -v csi-sanity >/dev/null || { echo "sanity: csi-sanity is missing; run make prepare-test" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-sanity.XXXXXX")
driver=
cleanup() {
    [ -z "$driver" ] || kill -9 "$driver" 2>/dev/null || true
    # Deepest first: what the driver mounted, then the pool.
    awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
        umount "$point" 2>/dev/null || umount -l "$point" || true
    done
    losetup -nO NAME,BACK-FILE | awk -v dir="$work/" 'index($2, dir) == 1 { print $1 }' | xargs -r -n1 losetup -d || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

cat > "$work/parameters.yaml" <<YAML
csi.storage.k8s.io/fstype: xfs
YAML

fail() {
    echo "sanity: $1" >&2
    [ ! -e "$work/driver.log" ] || { echo "--- the driver's last lines" >&2; tail -n 40 "$work/driver.log" >&2; }
    exit 1
}

# With HOLDFAST_SANITY_KEEP=DIR every run writes its whole log there.
keep() {
    cp "$work/sanity.log" "$HOLDFAST_SANITY_KEEP/sanity-$1.log"
    cp "$work/driver.log" "$HOLDFAST_SANITY_KEEP/driver-$1.log"
}

# One run: pool filesystem, access type.
run() {
    local fs=$1 type=$2 name="pool on $1, volumes as $2" pool=$work/pool code=0
    truncate -s 12G "$work/pool.img"
    case $fs in
        xfs) mkfs.xfs -q -m reflink=1 "$work/pool.img" ;;
        ext4) mkfs.ext4 -q -E lazy_itable_init=1 "$work/pool.img" ;;
        *) fail "$fs: only xfs and ext4 are tried here" ;;
    esac
    mkdir -p "$pool"
    mount -o loop "$work/pool.img" "$pool"
    mkdir "$pool/root"

    "$binary" standalone --endpoint "unix://$work/csi.sock" --node-name sanity-node --pool "default=file:$pool/root" \
        --log-level debug >"$work/driver.log" 2>&1 &
    driver=$!
    for _ in $(seq 100); do
        [ -S "$work/csi.sock" ] && break
        kill -0 "$driver" 2>/dev/null || fail "$name: the driver did not start"
        sleep 0.1
    done

    csi-sanity --csi.endpoint "unix://$work/csi.sock" --csi.testvolumeaccesstype "$type" \
        --csi.testvolumesize $((320 << 20)) --csi.testvolumeexpandsize $((384 << 20)) \
        --csi.testvolumeparameters "$work/parameters.yaml" \
        --csi.mountdir "$work/mount" --csi.stagingdir "$work/staging" \
        --ginkgo.no-color ${HOLDFAST_SANITY_KEEP:+--ginkgo.vv} >"$work/sanity.log" 2>&1 || code=$?
    # "Ran 80 of 98 Specs in 12.3 seconds" and "SUCCESS! -- 80 Passed | 0 Failed | 1 Pending | 17 Skipped"
    local summary
    summary=$(grep -E '^(SUCCESS|FAIL)! --|Passed \|' "$work/sanity.log" | tail -n 1 | sed 's/^.*-- //')
    if [ "$code" != 0 ] || ! grep -q ' 0 Failed' <<<"$summary"; then
        # The summary of the failures: ginkgo repeats them at its end.
        sed -n '/Summarizing/,$p' "$work/sanity.log" >&2
        [ -z "${HOLDFAST_SANITY_KEEP:-}" ] || keep "$fs-$type"
        fail "$name: ${summary:-csi-sanity ended with $code}"
    fi

    kill -TERM "$driver"
    wait "$driver" || fail "$name: the driver did not end cleanly on SIGTERM"
    driver=
    [ ! -e "$work/csi.sock" ] || fail "$name: the socket is still there"
    local left
    left=$(losetup -nO NAME,BACK-FILE | awk -v dir="$pool/" 'index($2, dir) == 1')
    [ -z "$left" ] || fail "$name: loop devices are left: $left"
    left=$(awk -v dir="$work/" -v pool="$pool" 'index($5, dir) == 1 && $5 != pool { print $5 }' /proc/self/mountinfo)
    [ -z "$left" ] || fail "$name: mounts are left: $left"
    left=$(find "$pool/root/volumes" "$pool/root/snapshots" "$pool/root/trash" -mindepth 1 2>/dev/null | head -n 5)
    [ -z "$left" ] || fail "$name: files are left: $left"
    [ -z "${HOLDFAST_SANITY_KEEP:-}" ] || keep "$fs-$type"
    umount "$pool"
    rm -rf "$work/pool.img" "$work/mount" "$work/staging"
    printf 'sanity: %-36s %s; nothing left behind\n' "$name" "$summary"
}

for fs in $filesystems; do
    for type in $types; do
        run "$fs" "$type"
    done
done
