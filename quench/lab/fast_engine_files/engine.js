// The stand-in's answers, in nginx's njs: nginx.org/en/docs/njs/reference.html

const MILLISECONDS_A_WORD = @milliseconds@;
const HEAD = '{"id":"stand-in","created":0,"model":"@model@","object":"chat.completion';
const TEXT = '{"id":"stand-in","created":0,"model":"@model@","object":"text_completion';
const WORD = `data: ${HEAD}.chunk","choices":[{"index":0,"finish_reason":null,"delta":{"content":"word "}}]}\n\n`;
const LAST = WORD.replace('null', '"stop"');

function complete(r) {
    // Not parsed, which would cost more than all else. In a string of JSON the quotes would have backslashes.
    const body = r.requestText || '';
    const asked = /"max_(?:completion_)?tokens": *([0-9]+)/.exec(body);
    const words = asked ? Number(asked[1]) : 16;
    if (/"stream": *true/.test(body)) {
        stream(r, words);
        return;
    }
    r.return(200, `${HEAD}","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"`
        + `${'word '.repeat(words)}"}}],"usage":{"prompt_tokens":1,"completion_tokens":${words},`
        + `"total_tokens":${words + 1}}}`);
}

function stream(r, words) {
    r.headersOut['Content-Type'] = 'text/event-stream';
    r.status = 200;
    r.sendHeader();
    let left = words;
    // When the client has left, send() throws, and nginx ends the request.
    function next() {
        if (left === 0) {
            r.send('data: [DONE]\n\n');
            r.finish();
            return;
        }
        left -= 1;
        r.send(left ? WORD : LAST);
        setTimeout(next, MILLISECONDS_A_WORD);
    }
    next();
}

// A balancer asks this way whether the model answers.
function completePlain(r) {
    const asked = /"max_tokens": *([0-9]+)/.exec(r.requestText || '');
    const words = asked ? Number(asked[1]) : 16;
    r.return(200, `${TEXT}","choices":[{"index":0,"finish_reason":"stop","text":"${'word '.repeat(words)}"}],`
        + `"usage":{"prompt_tokens":1,"completion_tokens":${words},"total_tokens":${words + 1}}}`);
}

export default { complete, completePlain };
