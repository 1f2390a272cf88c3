-- Arguments after "--": method, path with {} for the number, body, how many numbers there are, the first of them.
local head, tail, population, number

function init(args)
  local body = args[3]
  local before, after = string.match(args[2], "^([^{]*)(.*)$")
  head = args[1] .. " " .. before
  tail = string.gsub(after, "^{}", "", 1) .. " HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
      .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
  population, number = tonumber(args[4]), tonumber(args[5])
  if after == "" then population = 0 end
end

function request()
  if population == 0 then return head .. tail end
  number = (number + 1) % population
  return head .. number .. tail
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, e.connect + e.read + e.write + e.timeout + e.status, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
