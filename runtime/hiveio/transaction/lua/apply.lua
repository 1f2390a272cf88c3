-- Phase two: moves snapshots, command ids, verdict bits and the watermark, all or nothing, from one watermark only.
-- KEYS[1]  the watermark
-- ARGV     [1] watermark that must stand, [2] the next one, [3] first offset judged, [4] verdicts as '0' and '1',
--          [5] window: records, [6] window: ms for keyed ids, [7] offset up to which events are published,
--          [8] number of entries, then (aggregate, entry) each; then (command id, id entry) to the end
-- returns  {1, next watermark} or {0, the watermark that stands}
-- Competing and repeated calls are harmless: all but the first find another watermark.
local CHUNK, KEPT = 65536, 100000
local stands = redis.call('GET', KEYS[1]) or ''
if stands ~= ARGV[1] then return {0, stands} end
local offset, time, generation = string.match(ARGV[2], '^(%d+)|(%d+)|[^|]*|([^|]*)|')
offset, time = tonumber(offset), tonumber(time)
local prefix = KEYS[1] .. ':' .. generation
local ids = prefix .. ':ids'
local entries = tonumber(ARGV[8])
for i = 9, 8 + 2 * entries, 2 do redis.call('SET', prefix .. ':a:' .. ARGV[i], ARGV[i + 1]) end
local added = {['0'] = 0, ['1'] = 0}
for i = 9 + 2 * entries, #ARGV, 2 do
  local keyed = string.sub(ARGV[i + 1], -1)
  redis.call('HSET', ids, ARGV[i], ARGV[i + 1])
  redis.call('RPUSH', prefix .. ':order:' .. keyed, ARGV[i + 1] .. ':' .. ARGV[i])
  added[keyed] = added[keyed] + 1
end
-- Forget ids that are outside both windows; never before, for a verdict must not depend on when this runs.
for keyed, new in pairs(added) do
  local order = prefix .. ':order:' .. keyed
  for _ = 1, 2 * new + 8 do
    local oldest = redis.call('LINDEX', order, 0)
    if not oldest then break end
    local at, when, id = string.match(oldest, '^(%d+):(%d+):%d:(.*)$')
    if offset - tonumber(at) <= tonumber(ARGV[5]) then break end
    if keyed == '1' and time - tonumber(when) <= tonumber(ARGV[6]) then break end
    redis.call('LPOP', order)
    if redis.call('HGET', ids, id) == at .. ':' .. when .. ':' .. keyed then redis.call('HDEL', ids, id) end
  end
end
local first = tonumber(ARGV[3])
for i = 1, #ARGV[4] do
  local at = first + i - 1
  if string.byte(ARGV[4], i) == 49 then
    redis.call('SETBIT', prefix .. ':verdicts:' .. math.floor(at / CHUNK), at % CHUNK, 1)
  end
end
local floor = math.floor(math.min(tonumber(ARGV[7]), offset - KEPT) / CHUNK)
if floor > 0 then
  local from = tonumber(redis.call('GET', prefix .. ':floor') or '0')
  if floor > from then
    for chunk = from, floor - 1 do redis.call('DEL', prefix .. ':verdicts:' .. chunk) end
    redis.call('SET', prefix .. ':floor', floor)
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return {1, ARGV[2]}
