# Ask a model of a node, as the balancer asks it for clients, and print the answer, with the status as its last line.
#
# Standard input: the request, in JSON. The certificate's key is beside it, as CERTIFICATE.key.
# Arguments: ADDRESS:PORT CERTIFICATE CA PATH MODEL SECONDS
set -eu
address=$1 certificate=$2 ca=$3 path=$4 model=$5 seconds=$6
# The balancer's health check compares the name in the node's certificate; here any name of it will do.
name=$(timeout 10 openssl s_client -connect "$address" -cert "$certificate" -key "$certificate.key" -CAfile "$ca" \
    </dev/null 2>/dev/null |
    openssl x509 -noout -ext subjectAltName 2>/dev/null |
    sed -n -e 's/,.*//' -e 's/^ *DNS:\*/node/p' -e 's/^ *DNS://p' -e 's/^ *IP Address://p' | head -n 1)
exec curl --silent --show-error --connect-timeout 10 --max-time "$seconds" \
    --cert "$certificate" --key "$certificate.key" --cacert "$ca" \
    --connect-to "::$address" --header "X-Client-Id: :rollout" --header "X-Model: $model" \
    --header "Content-Type: application/json" --data-binary @- --write-out '\n%{http_code}\n' \
    "https://${name:-${address%:*}}$path"
