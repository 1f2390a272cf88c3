// The scope of a request, for nginx to choose the instance by: see docs/routing.md. Adapt the next two constants.

const PARTITIONS = 16; // EVENT_STORE_PARTITIONS

// The path of each actor, and what its scope(id) returns.
const ACTORS = {
    "/accounts/{id}": id => id.split("-")[0],
    "/orders/{id}": id => id, // it has no scope(id) of its own
};

const PATHS = Object.keys(ACTORS).map(path => ({ segments: path.split("/"), scope: ACTORS[path] }));

// The partition of the transaction log that the command or the read belongs to. What belongs to none goes anywhere.
function scope(request) {
    const segments = decoded(request.rawVariables.request_uri);
    for (let i = 0; i < PATHS.length; i++) {
        const id = matched(PATHS[i].segments, segments);
        if (id) {
            return String(crc32(Buffer.from(PATHS[i].scope(id))) % PARTITIONS);
        }
    }
    return request.variables.request_id; // another one each time
}

// The segments of the path, percent-decoded as the service does it: after they were split.
function decoded(uri) {
    const segments = [[]];
    for (let i = 0; i < uri.length && uri[i] !== 0x3f; i++) { // ?
        const escaped = uri[i] === 0x25 && uri.slice(i + 1, i + 3).toString(); // %
        if (uri[i] === 0x2f) { // /
            segments.push([]);
        } else if (escaped && /^[0-9a-f]{2}$/i.test(escaped)) {
            segments[segments.length - 1].push(parseInt(escaped, 16));
            i += 2;
        } else {
            segments[segments.length - 1].push(uri[i]);
        }
    }
    return segments.map(bytes => Buffer.from(bytes).toString());
}

function matched(template, segments) {
    let id = "";
    if (template.length !== segments.length) {
        return "";
    }
    for (let i = 0; i < template.length; i++) {
        if (template[i] === "{id}") {
            id = segments[i];
        } else if (template[i] !== segments[i]) {
            return "";
        }
    }
    return id;
}

// By half bytes: nginx evaluates this module for each request, so a table of 256 would be made each time.
const CRC = [
    0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
    0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
];

function crc32(bytes) {
    let crc = -1;
    for (let i = 0; i < bytes.length; i++) {
        crc ^= bytes[i];
        crc = (crc >>> 4) ^ CRC[crc & 15];
        crc = (crc >>> 4) ^ CRC[crc & 15];
    }
    return ~crc >>> 0;
}

export default { scope };
