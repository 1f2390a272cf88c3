-- The scope of a request as the header hive-scope, for Envoy to choose the instance by: see docs/routing.md. Adapt the
-- next two constants.

local PARTITIONS = 16 -- EVENT_STORE_PARTITIONS

-- The path of each actor, and what its scope(id) returns.
local ACTORS = {
  ["/accounts/{id}"] = function(id) return id:match("^[^-]*") end,
  ["/orders/{id}"] = function(id) return id end, -- it has no scope(id) of its own
}

-- By half bytes.
local CRC = {
  0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
  0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
}

local function crc32(text)
  local crc = -1
  for i = 1, #text do
    crc = bit.bxor(crc, text:byte(i))
    crc = bit.bxor(bit.rshift(crc, 4), CRC[bit.band(crc, 15) + 1])
    crc = bit.bxor(bit.rshift(crc, 4), CRC[bit.band(crc, 15) + 1])
  end
  return bit.bnot(crc) % 2 ^ 32
end

-- The segments of a path, percent-decoded as the service does it: after they were split.
local function split(path)
  local segments = {}
  for segment in path:gmatch("/([^/]*)") do
    segments[#segments + 1] = segment:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
  end
  return segments
end

local function matched(template, segments)
  local id = ""
  if #template ~= #segments then return "" end
  for i = 1, #template do
    if template[i] == "{id}" then
      id = segments[i]
    elseif template[i] ~= segments[i] then
      return ""
    end
  end
  return id
end

local PATHS = {}
for path, scope in pairs(ACTORS) do
  PATHS[#PATHS + 1] = { segments = split(path), scope = scope }
end

function envoy_on_request(request)
  local headers = request:headers()
  local segments = split((headers:get(":path") or ""):match("^[^?]*"))
  headers:remove("hive-scope") -- what belongs to no scope goes anywhere
  for _, path in ipairs(PATHS) do
    local id = matched(path.segments, segments)
    if id ~= "" then
      headers:add("hive-scope", string.format("%d", crc32(path.scope(id)) % PARTITIONS))
      return
    end
  end
end
