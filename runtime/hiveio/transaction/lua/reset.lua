-- Starts a new generation of a scope's cache, if the watermark is still the one that was found wrong.
-- KEYS[1]  the watermark
-- ARGV     the watermark that was found ('' if there was none), the watermark to begin with
-- returns  {1, the new watermark} or {0, the present watermark}
local present = redis.call('GET', KEYS[1]) or ''
if present ~= ARGV[1] then return {0, present} end
redis.call('SET', KEYS[1], ARGV[2])
return {1, ARGV[2]}
