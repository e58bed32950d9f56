// Managed by Quench, role haproxy, from templates/haproxy/etc/haproxy/body-router/router.js.j2.
// Change the inventory's haproxy_* keys instead: what is edited here, the next run undoes.
// The model of a request that is too large for HAProxy. Runs in nginx's njs, from version 0.7 on.

function model(r) {
    try {
        const name = JSON.parse(r.requestText).model;
        // A name with anything else in it is no model's, and would not fit into a header.
        return /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name) ? name : '';
    } catch (e) {
        return '';
    }
}

function route(r) {
    r.variables.model = model(r);
    r.subrequest('/may', {}, (reply) => {
        if (reply.status === 204) {
            r.internalRedirect('@haproxy');
            return;
        }
        r.headersOut['Content-Type'] = 'application/json';
        r.return(reply.status, reply.responseText);
    });
}

export default { route };
