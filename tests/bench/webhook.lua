-- wrk script: one signed body, a new X-GitHub-Delivery for every request; the result as one line of JSON.
local count, prefix = 0, ""

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["X-Hub-Signature-256"] = args[2]
  wrk.headers["X-GitHub-Event"] = args[3]
  prefix = args[4]
end

function request()
  count = count + 1
  wrk.headers["X-GitHub-Delivery"] = prefix .. count
  return wrk.format()
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "errors": %d, "p50": %.3f, "p99": %.3f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
