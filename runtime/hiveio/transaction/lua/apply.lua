-- Phase two: moves snapshots, command ids, verdicts and the watermark together, if the watermark is the expected one.
-- KEYS[1]  the watermark
-- ARGV     [1] the expected watermark, [2] the next one, [3] the first offset judged, [4] verdicts as '0' and '1',
--          [5] window: records, [6] window: ms for keyed ids, [7] offset below which publishers need no verdict,
--          [8] MessagePack: a list of aggregate, entry, aggregate, entry, …
--          [9] MessagePack: a list of command id, id entry, …
--          [10] MessagePack: a list of those of the aggregates whose entry has events that are not folded
--          [11] MessagePack: a list of writer, entry, writer, entry, …; the entry of a forgotten writer is ''
--          [12] MessagePack: a list of name, place, …, of the list of processes (-1: it is not on it any more)
-- returns  {1, the next watermark} or {0, the present watermark}
-- Competing and repeated calls do no harm: all but the first find another watermark.
local CHUNK, KEPT, MOST = 65536, 100000, 1000
local present = redis.call('GET', KEYS[1]) or ''
if present ~= ARGV[1] then return {0, present} end
local offset, time, generation = string.match(ARGV[2], '^(%d+)|(%d+)|[^|]*|([^|]*)|')
offset, time = tonumber(offset), tonumber(time)
local prefix = KEYS[1] .. ':' .. generation
local ids = prefix .. ':ids'
-- Makes few calls with many arguments each, because a call costs more than its work.
local function many(list, step, ...)
  for i = 1, #list, MOST * step do
    local head, words = {...}, {unpack(list, i, math.min(i + MOST * step - 1, #list))}
    for k = #head, 1, -1 do table.insert(words, 1, head[k]) end
    redis.call(unpack(words))
  end
end
local entries, unfolded = cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[10])
local listed = prefix .. ':unfolded'
if #unfolded > 0 or redis.call('EXISTS', listed) == 1 then
  local names = {}
  for i = 1, #entries, 2 do names[#names + 1] = entries[i] end
  many(names, 1, 'SREM', listed)
  many(unfolded, 1, 'SADD', listed)
end
for i = 1, #entries, 2 do entries[i] = prefix .. ':a:' .. entries[i] end
many(entries, 2, 'MSET')
local named = cmsgpack.unpack(ARGV[9])
many(named, 2, 'HSET', ids)
local writers, remembered, forgotten = cmsgpack.unpack(ARGV[11]), {}, {}
for i = 1, #writers, 2 do
  if writers[i + 1] == '' then forgotten[#forgotten + 1] = writers[i]
  else
    remembered[#remembered + 1] = writers[i]
    remembered[#remembered + 1] = writers[i + 1]
  end
end
many(remembered, 2, 'HSET', prefix .. ':writers')
many(forgotten, 1, 'HDEL', prefix .. ':writers')
local processes, on, off = cmsgpack.unpack(ARGV[12]), {}, {}
for i = 1, #processes, 2 do
  if processes[i + 1] < 0 then off[#off + 1] = processes[i]
  else
    on[#on + 1] = string.format('%.0f', processes[i + 1])
    on[#on + 1] = processes[i]
  end
end
many(on, 2, 'ZADD', prefix .. ':processes')
many(off, 1, 'ZREM', prefix .. ':processes')
local added = {['0'] = {}, ['1'] = {}}
for i = 1, #named, 2 do
  local to = added[string.sub(named[i + 1], -1)]
  to[#to + 1] = named[i + 1] .. ':' .. named[i]
end
-- Forget the ids that are outside both windows, and no others: a verdict must not depend on when this runs.
for keyed, new in pairs(added) do
  local order = prefix .. ':order:' .. keyed
  many(new, 1, 'RPUSH', order)
  local oldest = redis.call('LRANGE', order, 0, 2 * #new + 7)
  local past, asked = {}, {}
  for _, old in ipairs(oldest) do
    local at, when, id = string.match(old, '^(%d+):(%d+):%d:(.*)$')
    if offset - tonumber(at) <= tonumber(ARGV[5]) then break end
    if keyed == '1' and time - tonumber(when) <= tonumber(ARGV[6]) then break end
    past[#past + 1], asked[#asked + 1] = at .. ':' .. when .. ':' .. keyed, id
  end
  if #past > 0 then
    redis.call('LTRIM', order, #past, -1)
    local gone = {}
    for i = 1, #asked, MOST do
      local stored = redis.call('HMGET', ids, unpack(asked, i, math.min(i + MOST - 1, #asked)))
      for k, entry in ipairs(stored) do
        if entry == past[i + k - 1] then gone[#gone + 1] = asked[i + k - 1] end
      end
    end
    many(gone, 1, 'HDEL', ids)
  end
end
local first = tonumber(ARGV[3])
for i = 1, #ARGV[4], 32 do
  local bits, at = string.sub(ARGV[4], i, i + 31), first + i - 1
  if at % CHUNK + #bits > CHUNK then  -- these bits lie in two chunks
    for k = 1, #bits do
      redis.call('SETBIT', prefix .. ':verdicts:' .. math.floor((at + k - 1) / CHUNK), (at + k - 1) % CHUNK,
        string.sub(bits, k, k))
    end
  else
    redis.call('BITFIELD', prefix .. ':verdicts:' .. math.floor(at / CHUNK), 'SET', 'u' .. #bits, at % CHUNK,
      tonumber(bits, 2))
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
