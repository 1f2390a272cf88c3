-- Reads how far the cache of a scope has come: the watermark, and the writers of the log at that offset.
-- KEYS[1]  the watermark
-- returns  {watermark or '', then for each call a list of writer, entry, writer, entry, …}
-- entry    "number:offset" of its latest record
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
return {watermark, generation and redis.call('HGETALL', KEYS[1] .. ':' .. generation .. ':writers') or {}}
