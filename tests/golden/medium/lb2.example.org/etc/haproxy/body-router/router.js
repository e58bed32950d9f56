// Managed by Quench, role haproxy, from templates/haproxy/etc/haproxy/body-router/router.js.j2.
// Change the inventory's haproxy_* keys instead: what is edited here, the next run undoes.
// The model of a request that is too large for HAProxy. Runs in nginx's njs, from version 0.7 on.

function route(r) {
    let model;
    try {
        model = JSON.parse(r.requestText).model;
    } catch (e) {
        model = undefined;
    }
    // A name with anything else in it is no model's, and would not fit into a header.
    if (typeof model !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(model)) {
        // HAProxy refuses it, as it refuses every request that names no model.
        model = '';
    }
    r.variables.model = model;
    r.internalRedirect('@haproxy');
}

export default { route };
