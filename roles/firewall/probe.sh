# Other managers of packet filters, and bindings that would go past the zones. One line each: KEY; WHAT; REMEDY.
say() { echo "firewall_zones; $1; $2"; }
if [ "$(systemctl is-active ufw.service 2>/dev/null)" = active ] && ufw status 2>/dev/null | grep -q '^Status: active'; then
    say "ufw is active, and two firewalls contradict each other" "disable it: ufw disable"
fi
for unit in nftables netfilter-persistent iptables ip6tables; do
    if systemctl is-enabled --quiet "$unit.service" 2>/dev/null; then
        say "$unit.service loads rules of its own" "disable it: systemctl disable --now $unit.service"
    fi
done
for file in /etc/firewalld/zones/*.xml /etc/firewalld/policies/*.xml; do
    # Those of docker are its own business: what it publishes is dropped by quench-forward.service, and of its zone this
    # role makes its own.
    case $file in *'*.xml' | */docker*.xml) continue ;; esac
    if ! grep -q 'Managed by Quench, role firewall' "$file" && grep -qE '<(interface|source|ingress-zone) ' "$file"; then
        say "$file binds interfaces or networks past the zones" "remove it"
    fi
done
if [ -s /etc/firewalld/direct.xml ] && grep -qE '<(rule|passthrough) ' /etc/firewalld/direct.xml; then
    say "/etc/firewalld/direct.xml has rules of its own" "remove them"
fi
for file in $(grep -ls '^zone=.' /etc/NetworkManager/system-connections/* 2>/dev/null); do
    say "$file binds its interface to a zone" "nmcli connection modify NAME connection.zone ''"
done
