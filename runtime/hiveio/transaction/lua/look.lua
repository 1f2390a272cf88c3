-- What an instance that does not follow a scope sees of it.
-- KEYS[1]  the watermark
-- ARGV     the lease of its leader
-- returns  {watermark or '', {1 or more if somebody leads it or folds this cache or 0, where it was left at rest or ''}}
local served = redis.call('EXISTS', ARGV[1], KEYS[1] .. ':fold')
return {redis.call('GET', KEYS[1]) or '', {served, redis.call('GET', KEYS[1] .. ':rest') or ''}}
