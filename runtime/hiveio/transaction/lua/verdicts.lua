-- Reads verdicts that instances have applied to the cache.
-- KEYS[1]  the watermark
-- ARGV     for each call: first offset, offset after the last
-- returns  {watermark or '', then for each call a text of '0' (void), '1' (accepted), '?' (unknown: too old, or not applied yet)}
local CHUNK = 65536
local watermark = redis.call('GET', KEYS[1]) or ''
local offset, generation = string.match(watermark, '^(%d+)|%d+|[^|]*|([^|]*)|')
local replies = {watermark}
local floor = generation and tonumber(redis.call('GET', KEYS[1] .. ':' .. generation .. ':floor') or '0')
for i = 1, #ARGV, 2 do
  local verdicts = {}
  for at = tonumber(ARGV[i]), tonumber(ARGV[i + 1]) - 1 do
    local chunk = math.floor(at / CHUNK)
    if not generation or at >= tonumber(offset) or chunk < floor then
      verdicts[#verdicts + 1] = '?'
    else
      verdicts[#verdicts + 1] = redis.call('GETBIT', KEYS[1] .. ':' .. generation .. ':verdicts:' .. chunk, at % CHUNK)
    end
  end
  replies[#replies + 1] = table.concat(verdicts)
end
return replies
