// Managed by Quench, role haproxy, from templates/haproxy/etc/haproxy/body-router/router.js.j2.
// Change the inventory's haproxy_* keys instead: what is edited here, the next run undoes.
// The model of a request in which HAProxy has not found it. Runs in nginx's njs, from version 0.7 on.

const QUOTE = 0x22, COMMA = 0x2c, COLON = 0x3a, BACKSLASH = 0x5c;
const LIST = 0x5b, LIST_END = 0x5d, OBJECT = 0x7b, OBJECT_END = 0x7d;
// To read so many one by one takes a third of a second, in which the worker does nothing else.
const MOST_BYTES = 1048576;

// The quote that ends a string.
function lastQuote(body, at) {
    let escaped;
    do {
        at = body.indexOf('"', at + 1);
        escaped = false;
        for (let before = at - 1; body[before] === BACKSLASH; before--) {
            escaped = !escaped;
        }
    } while (escaped);
    return at;
}

// The name in the outermost object. JSON.parse ends at 32 levels here, and the tools of a request may have more.
function outermost(body) {
    let name, key, text, depth = 0;
    for (let at = 0; at < body.length; at++) {
        const byte = body[at];
        if (byte === QUOTE) {
            const last = lastQuote(body, at);
            if (last < 0) {
                return '';
            }
            if (depth === 1) {
                text = JSON.parse(body.slice(at, last + 1).toString());
                name = key === 'model' ? text : name;
            }
            at = last;
        } else if (byte === OBJECT || byte === LIST) {
            depth++;
        } else if (byte === OBJECT_END || byte === LIST_END) {
            depth--;
        } else if (depth === 1 && byte === COLON) {
            key = text;
            // Of a name that is given twice, the last counts.
            name = key === 'model' ? '' : name;
        } else if (depth === 1 && byte === COMMA) {
            key = '';
        }
    }
    return name;
}

function named(r) {
    try {
        return JSON.parse(r.requestText).model;
    } catch (e) {
        const body = r.requestBuffer;
        return body.length <= MOST_BYTES ? outermost(body) : '';
    }
}

function model(r) {
    try {
        const name = named(r);
        // A name with anything else in it is no model's, and would not fit into a header.
        return typeof name === 'string' && /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name) ? name : '';
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
