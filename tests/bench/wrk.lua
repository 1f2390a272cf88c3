-- Arguments after "--": method, path with {} for the number, body, how many numbers there are, the first of them,
-- "refusable" if 422 is no failure, and the numbers themselves, with commas, if they are not those below how many.
local head, tail, population, number, body, rest
local threads, numbers = {}, {}
refused = 0 -- global: read from the thread at the end

function setup(thread) table.insert(threads, thread) end

function init(args)
  body = args[3]
  local before, after = string.match(args[2], "^([^{]*)(.*)$")
  head = args[1] .. " " .. before
  tail = string.gsub(after, "^{}", "", 1) .. " HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
      .. "Content-Length: "
  population, number = tonumber(args[4]), tonumber(args[5])
  if after == "" then population = 0 end
  for found in string.gmatch(args[7], "%d+") do table.insert(numbers, found) end
  body, rest = string.match(body, "^(.-){other}(.*)$")
  if body == nil then tail = tail .. #args[3] .. "\r\n\r\n" .. args[3] end
  -- Only where it is asked for: with a response() wrk hands over every header.
  if args[6] == "refusable" then
    response = function(status) if status == 422 then refused = refused + 1 end end
  end
end

function request()
  if population == 0 then return head .. tail end
  number = (number + 1) % population
  if body == nil then return head .. (numbers[number + 1] or number) .. tail end
  local whole = body .. (number + math.random(population - 1)) % population .. rest
  return head .. number .. tail .. #whole .. "\r\n\r\n" .. whole
end

function done(summary, latency, requests)
  local e, refusals = summary.errors, 0
  for _, thread in ipairs(threads) do refusals = refusals + thread:get("refused") end
  io.write(string.format(
    '\n{"requests": %d, "refused": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, refusals, e.connect + e.read + e.write + e.timeout + e.status - refusals,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
