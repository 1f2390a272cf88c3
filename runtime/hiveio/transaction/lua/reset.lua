-- Begins a scope anew, under a new generation, if the watermark is still the one that was found wrong.
-- KEYS[1]  the watermark
-- ARGV     the watermark found ('' if there was none), the watermark to begin with
-- returns  {1, the new watermark} or {0, the watermark that stands}
local stands = redis.call('GET', KEYS[1]) or ''
if stands ~= ARGV[1] then return {0, stands} end
redis.call('SET', KEYS[1], ARGV[2])
return {1, ARGV[2]}
