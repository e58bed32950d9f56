# Managed by Quench, role hardening, from templates/hardening/etc/profile.d/quench.sh.j2.
# Change the inventory's hardening_* keys instead: what is edited here, the next run undoes.
# For people who log in; services have their own. [CIS 5.4.3]
umask 027
ulimit -c 0
TMOUT=900
readonly TMOUT
export TMOUT
