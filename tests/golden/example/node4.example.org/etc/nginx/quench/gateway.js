// Managed by Quench, role nginx, from templates/nginx/etc/nginx/quench/gateway.js.j2.
// Change the inventory's nginx_* keys instead: what is edited here, the next run undoes.
// Who asks, and which engine answers. Runs in nginx's njs, from version 0.7 on: nginx.org/en/docs/njs

import fs from 'fs';
import crypto from 'crypto';

const KEYRING = '/etc/nginx/quench/keyring.json';

// The engine of each model, by its named location in nginx.conf.
const ENGINES = {
    "llama-3.3-70b": '@engine_1',
};

// OpenAI's clients send `Authorization: Bearer KEY`; others send `X-API-Key: KEY`.
function presented(r) {
    const authorization = r.headersIn['Authorization'] || '';
    if (authorization.slice(0, 7).toLowerCase() === 'bearer ') {
        return authorization.slice(7);
    }
    return r.headersIn['X-API-Key'] || '';
}

// What the keyring says of the key that came with the request, or null.
function holder(r) {
    const key = presented(r);
    if (!key) {
        return null;
    }
    try {
        const digest = crypto.createHash('sha256').update(key).digest('hex');
        const entry = JSON.parse(fs.readFileSync(KEYRING)).keys[digest];
        return entry && Date.now() / 1000 < entry.expires ? entry : null;
    } catch (e) {
        // A keyring that cannot be read opens nothing.
        r.error(`keyring: ${e.message}`);
        return null;
    }
}

function client(r) {
    const entry = holder(r);
    return entry ? entry.client : '';
}

// nginx counts a request in the zone whose variable is not empty.
function rateOf(r, rate) {
    const entry = holder(r);
    return entry && entry.rate === rate ? entry.client : '';
}

function concurrentOf(r, number) {
    const entry = holder(r);
    return entry && entry.concurrent === number ? entry.client : '';
}

function mayUse(entry, model) {
    return ENGINES.hasOwnProperty(model) && (!entry.models || entry.models.indexOf(model) >= 0);
}

function refuse(r, status, message, code) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({
        error: { message: message, type: 'invalid_request_error', param: 'model', code: code },
    }));
}

function models(r) {
    const entry = holder(r);
    const served = Object.keys(ENGINES).filter((model) => entry && mayUse(entry, model));
    r.headersOut['Content-Type'] = 'application/json';
    r.return(200, JSON.stringify({
        object: 'list',
        data: served.map((model) => ({ id: model, object: 'model', created: 0, owned_by: 'quench' })),
    }));
}

function route(r) {
    let model;
    try {
        model = JSON.parse(r.requestText).model;
    } catch (e) {
        refuse(r, 400, 'The request is not JSON.', 'invalid_json');
        return;
    }
    if (typeof model !== 'string') {
        refuse(r, 400, 'The request names no model.', 'model_missing');
        return;
    }
    const entry = holder(r);
    if (!entry || !mayUse(entry, model)) {
        // Nobody learns of a model that is there but not for him.
        refuse(r, 404, 'The model does not exist, or you may not use it.', 'model_not_found');
        return;
    }
    r.variables.model = model;
    r.internalRedirect(ENGINES[model]);
}

function rate_120_20(r) {
    return rateOf(r, '120_20');
}

function rate_600_0(r) {
    return rateOf(r, '600_0');
}

function concurrent_4(r) {
    return concurrentOf(r, '4');
}

function concurrent_16(r) {
    return concurrentOf(r, '16');
}

export default {
    client,
    models,
    route,
    rate_120_20,
    rate_600_0,
    concurrent_4,
    concurrent_16,
};
