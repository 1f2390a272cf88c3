-- Reads aggregates and command ids of one scope, as begin does, for whoever judges: as many of them, in their order,
-- as fit into one answer.
-- KEYS[1]  the watermark
-- ARGV     for each call: n, n * (aggregate or '', command id or '')
-- returns  {watermark or '', then for each call a list of {entry or false, id entry or false}: the first of them at
--          least}
local MOST = 4000000
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local replies, i, size = {watermark}, 1, 0
while i <= #ARGV do
  local n, found = tonumber(ARGV[i]), {}
  for k = i + 1, i + 2 * n, 2 do
    if size > MOST and #found > 0 then break end
    local entry, id = false, false
    if generation then
      if ARGV[k] ~= '' then entry = redis.call('GET', KEYS[1] .. ':' .. generation .. ':a:' .. ARGV[k]) end
      if ARGV[k + 1] ~= '' then id = redis.call('HGET', KEYS[1] .. ':' .. generation .. ':ids', ARGV[k + 1]) end
    end
    found[#found + 1] = {entry, id}
    size = size + (entry and #entry or 0)
  end
  replies[#replies + 1] = found
  i = i + 1 + 2 * n
end
return replies
