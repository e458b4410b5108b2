#!/bin/sh
# Whether this gateway may hold the virtual address: exit code 1 if another one does better just now.
#
#     gateway_check http|https PORT OWN-HOST PEER-HOST...
#
# A gateway that has a node is better than one without, and that one better than one that does not answer. Two that are
# alike leave the address where it is, so that it answers also while no node is up. Needs no rights; a shell and curl,
# since it runs every second.
scheme=$1 port=$2 own=$3
shift 3

# 2: has a node, 1: has none, 0: no answer. The certificate is not looked at, since nothing secret is asked.
state() {
    case $(curl -q --silent --insecure --noproxy '*' --max-time 1 --output /dev/null --write-out '%{http_code}' \
        "$scheme://$1:$port/-/healthz") in
        200) echo 2 ;;
        000) echo 0 ;;
        *) echo 1 ;;
    esac
}

here=$(state "$own")
[ "$here" -eq 2 ] && exit 0
for peer; do
    [ "$(state "$peer")" -gt "$here" ] && exit 1
done
exit 0
