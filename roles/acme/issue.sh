# Whether the host has its certificate, and the service has read it; `mend` gets it. Arguments: ask|mend CERTIFICATE WANTED
# UNIT
mode=$1 certificate=$2 wanted=$3 unit=$4
if [ "$mode" = ask ]; then
    [ "$(cat "$certificate.wanted" 2>/dev/null)" = "$wanted" ] && [ -e "${certificate%/*}/read" ] &&
        openssl x509 -noout -checkend 0 -in "$certificate" >/dev/null || echo none
    exit 0
fi
# A host may have had nginx before Quench, with a page of its own on the port that the CA calls. The roles after this one
# bring what has no use for that port.
stopped=
if [ -n "$(ss -Hltn 'sport = :80')" ] && systemctl is-active --quiet nginx.service; then
    case $(systemctl show --property=FragmentPath --value nginx.service) in
    /lib/* | /usr/lib/*) systemctl stop nginx.service && stopped=1 ;;
    esac
fi
systemctl daemon-reload
if ! systemctl start "$unit"; then
    journalctl --unit "$unit" --lines 20 --no-pager --output cat >&2
    [ -z "$stopped" ] || systemctl start nginx.service
    exit 1
fi
