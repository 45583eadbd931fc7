"""What Redis does in one step: Lua scripts, each a transaction with the counters that it changes.

Every script is given the prefix of the stream's keys as its only key, which holds the hash tag of the others,
and begins with the token of the caller's place: a caller that has lost its lease changes nothing.

Keys behind the prefix: `shape` and `state` (hashes), `names` (list), `made:A` (hash, rows of account A at the
producer), `s:A` (its stream; the ID of an entry is its sequence and the number of rows up to its end),
`role:R` (hash), `rows:R:A` (hash, rows of account A at role R), `tries:R` (hash, entries that a consumer may
have died of), `dead:R` (stream), `seat:S` (lease of a place), `owners` (hash, last holder of each place),
`words` (hash), `note`.
"""

_HEAD = """
local p = KEYS[1]
local function num(key, field) return tonumber(redis.call('HGET', p .. key, field) or '0') end
local function held(seat, token)
  if redis.call('GET', p .. 'seat:' .. seat) ~= token then
    return redis.error_reply('FENCED this place at the stream was taken over, or its lease has run out')
  end
end
"""

CREATE = (
    _HEAD
    + """
if redis.call('EXISTS', p .. 'shape') == 1 then return 0 end
redis.call('HSET', p .. 'shape', 'depth', ARGV[1], 'packet_bytes', ARGV[2])
redis.call('HSET', p .. 'shape', 'last', ARGV[3], 'readers', ARGV[4])
redis.call('HSET', p .. 'state', 'state', 'absent', 'generation', 0, 'head', 0, 'packets', 0, 'op', 0)
for role in string.gmatch(ARGV[4], '[^,]+') do
  redis.call('HSET', p .. 'role:' .. role, 'state', 'absent', 'cursor', 0, 'settled', 0)
end
return 1
"""
)

ATTACH = (
    _HEAD
    + """
-- seat, token, lease in ms: 1 where the place was free
if redis.call('EXISTS', p .. 'shape') == 0 then
  return redis.error_reply('MISSING there is no stream ' .. p)
end
if redis.call('SET', p .. 'seat:' .. ARGV[1], ARGV[2], 'NX', 'PX', ARGV[3]) then
  redis.call('HSET', p .. 'owners', ARGV[1], ARGV[2])
  return 1
end
return 0
"""
)

RENEW = (
    _HEAD
    + """
-- A lease that ran out while Redis was away is taken up again, unless somebody else has had it since.
if redis.call('HGET', p .. 'owners', ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('SET', p .. 'seat:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
)

LEAVE = (
    _HEAD
    + """
if redis.call('HGET', p .. 'owners', ARGV[1]) == ARGV[2] then
  redis.call('DEL', p .. 'seat:' .. ARGV[1])
  redis.call('HDEL', p .. 'owners', ARGV[1])
end
return 1
"""
)

START = (
    _HEAD
    + """
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
redis.call('HSET', p .. 'state', 'state', 'attached')
redis.call('HINCRBY', p .. 'state', 'generation', 1)
local names = redis.call('LRANGE', p .. 'names', 0, -1)
local published, settled = {}, {}
for a = 0, #names - 1 do
  published[a + 1] = num('made:' .. a, 'published'); settled[a + 1] = num('made:' .. a, 'settled')
end
return {num('state', 'generation'), num('state', 'head'), num('state', 'op'), names, published, settled,
        num('shape', 'depth'), num('shape', 'packet_bytes')}
"""
)

REGISTER = (
    _HEAD
    + """
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
local names = redis.call('LRANGE', p .. 'names', 0, -1)
for a = 0, #names - 1 do if names[a + 1] == ARGV[2] then return a end end
local a = redis.call('RPUSH', p .. 'names', ARGV[2]) - 1
for role in string.gmatch(redis.call('HGET', p .. 'shape', 'readers'), '[^,]+') do
  redis.call('XGROUP', 'CREATE', p .. 's:' .. a, role, '0', 'MKSTREAM')
end
return a
"""
)

_ROOM = """
local function room()
  local used, packets = 0, num('state', 'packets')
  for role in string.gmatch(redis.call('HGET', p .. 'shape', 'readers'), '[^,]+') do
    local state = redis.call('HGET', p .. 'role:' .. role, 'state')
    if state ~= 'finalised' and state ~= 'checkpointed' then
      used = math.max(used, packets - num('role:' .. role, 'settled'))
    end
  end
  return num('shape', 'depth') - used
end
"""

ROOM = _HEAD + _ROOM + "return room()"

_ONCE = """
-- An operation whose answer was lost is repeated with the same number: it is done once.
local done = num('state', 'op')
if op <= done then return num('state', 'result') end
if op > done + 1 then
  return redis.error_reply('GAP Redis has lost writes that it had accepted: set appendfsync to always')
end
local function answer(result) redis.call('HSET', p .. 'state', 'op', op, 'result', result); return result end
"""

PUSH = (
    _HEAD
    + _ROOM
    + """
-- token, op, account, rows, source, sequence, content
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
local op = tonumber(ARGV[2])
"""
    + _ONCE
    + """
local made, rows, source = p .. 'made:' .. ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('HINCRBY', made, 'seen', rows)
if source > num('made:' .. ARGV[3], 'settled') then redis.call('HSET', made, 'settled', ARGV[5]) end
if room() < 1 then
  redis.call('HINCRBY', made, 'd1', rows)
  return answer(0)
end
local stop = redis.call('HINCRBY', made, 'published', rows)
redis.call('HINCRBY', made, 'packets', 1)
redis.call('HINCRBY', p .. 'state', 'packets', 1)
redis.call('HSET', p .. 'state', 'head', ARGV[6])
redis.call('XADD', p .. 's:' .. ARGV[3], ARGV[6] .. '-' .. stop, 'p', ARGV[7])
return answer(1)
"""
)

BOOK = (
    _HEAD
    + """
-- token, op, account, seen, sampled out, dropped, reason, source
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
local op = tonumber(ARGV[2])
"""
    + _ONCE
    + """
local made, source = p .. 'made:' .. ARGV[3], tonumber(ARGV[8])
if source > 0 and source <= num('made:' .. ARGV[3], 'settled') then return answer(0) end
if source > 0 then redis.call('HSET', made, 'settled', ARGV[8]) end
redis.call('HINCRBY', made, 'seen', ARGV[4])
redis.call('HINCRBY', made, 'sampled_out', ARGV[5])
redis.call('HINCRBY', made, 'd' .. ARGV[7], ARGV[6])
return answer(1)
"""
)

END = (
    _HEAD
    + """
-- token, how
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
redis.call('HSET', p .. 'state', 'state', ARGV[2])
return 1
"""
)

NOTE = (
    _HEAD
    + """
local fenced = held('producer', ARGV[1]); if fenced then return fenced end
redis.call('SET', p .. 'note', ARGV[2])
return 1
"""
)

OPEN = (
    _HEAD
    + """
-- role, token: the state of a place that was just taken
local fenced = held('role:' .. ARGV[1], ARGV[2]); if fenced then return fenced end
redis.call('HSET', p .. 'role:' .. ARGV[1], 'state', 'attached')
return num('shape', 'depth')
"""
)

TAKE = (
    _HEAD
    + """
-- role, token, then account, sequence and end of the newest entry taken of each
local fenced = held('role:' .. ARGV[1], ARGV[2]); if fenced then return fenced end
for i = 3, #ARGV, 3 do
  local rows = p .. 'rows:' .. ARGV[1] .. ':' .. ARGV[i]
  if tonumber(ARGV[i + 2]) > num('rows:' .. ARGV[1] .. ':' .. ARGV[i], 'position') then
    redis.call('HSET', rows, 'position', ARGV[i + 2])
  end
  if tonumber(ARGV[i + 1]) > num('role:' .. ARGV[1], 'cursor') then
    redis.call('HSET', p .. 'role:' .. ARGV[1], 'cursor', ARGV[i + 1])
  end
end
return 1
"""
)

ACKNOWLEDGE = (
    _HEAD
    + """
-- role, token, 'durable' or 'lapped', then account, sequence, end and rows of each entry
local role = ARGV[1]
local fenced = held('role:' .. role, ARGV[2]); if fenced then return fenced end
local touched = {}
for i = 4, #ARGV, 4 do
  local a, rows = ARGV[i], 'rows:' .. role .. ':' .. ARGV[i]
  if redis.call('XACK', p .. 's:' .. a, role, ARGV[i + 1] .. '-' .. ARGV[i + 2]) == 1 then
    redis.call('HINCRBY', p .. rows, ARGV[3], ARGV[i + 3])
    redis.call('HINCRBY', p .. 'role:' .. role, 'settled', 1)
    redis.call('HDEL', p .. 'tries:' .. role, ARGV[i + 1])
  end
  if tonumber(ARGV[i + 2]) > num(rows, 'position') then
    redis.call('HSET', p .. rows, 'position', ARGV[i + 2])
  end
  if tonumber(ARGV[i + 1]) > num(rows, 'acked') then
    redis.call('HSET', p .. rows, 'acked', ARGV[i + 1])
  end
  touched[a] = true
end
for a, _ in pairs(touched) do
  local least
  for other in string.gmatch(redis.call('HGET', p .. 'shape', 'readers'), '[^,]+') do
    local state = redis.call('HGET', p .. 'role:' .. other, 'state')
    if state ~= 'finalised' and state ~= 'checkpointed' then
      local acked = num('rows:' .. other .. ':' .. a, 'acked')
      least = least and math.min(least, acked) or acked
    end
  end
  -- Never by length: what the slowest role has not acknowledged stays.
  if least and least > 0 then redis.call('XTRIM', p .. 's:' .. a, 'MINID', (least + 1) .. '-0') end
end
return 1
"""
)

BURY = (
    _HEAD
    + """
-- role, token, account, ID, content
local fenced = held('role:' .. ARGV[1], ARGV[2]); if fenced then return fenced end
redis.call('XADD', p .. 'dead:' .. ARGV[1], '*', 'point', ARGV[3], 'id', ARGV[4], 'p', ARGV[5])
return 1
"""
)

ROLL_BACK = (
    _HEAD
    + """
-- role, token, then account and rows that were durable and are stored no more
local fenced = held('role:' .. ARGV[1], ARGV[2]); if fenced then return fenced end
for i = 3, #ARGV, 2 do
  local rows = p .. 'rows:' .. ARGV[1] .. ':' .. ARGV[i]
  redis.call('HINCRBY', rows, 'durable', -tonumber(ARGV[i + 1]))
  redis.call('HINCRBY', rows, 'rolled_back', ARGV[i + 1])
end
return 1
"""
)

FINISH = (
    _HEAD
    + """
-- role, token, state: what is not settled is lapped
local role = ARGV[1]
local fenced = held('role:' .. role, ARGV[2]); if fenced then return fenced end
redis.call('HSET', p .. 'role:' .. role, 'state', ARGV[3])
return 1
"""
)

GAUGE = (
    _HEAD
    + """
local fenced = held('role:' .. ARGV[1], ARGV[2]); if fenced then return fenced end
redis.call('HSET', p .. 'rows:' .. ARGV[1] .. ':' .. ARGV[3], 'g' .. ARGV[4], ARGV[5])
return 1
"""
)

RECORD = (
    _HEAD
    + """
if redis.call('EXISTS', p .. 'shape') == 0 then
  return redis.error_reply('MISSING there is no stream ' .. p)
end
local names = redis.call('LRANGE', p .. 'names', 0, -1)
local made, roles = {}, {}
for a = 0, #names - 1 do made[a + 1] = redis.call('HGETALL', p .. 'made:' .. a) end
for role in string.gmatch(redis.call('HGET', p .. 'shape', 'readers'), '[^,]+') do
  local rows = {}
  for a = 0, #names - 1 do rows[a + 1] = redis.call('HGETALL', p .. 'rows:' .. role .. ':' .. a) end
  roles[#roles + 1] = {role, redis.call('EXISTS', p .. 'seat:role:' .. role),
                       redis.call('HGETALL', p .. 'role:' .. role), rows}
end
return {redis.call('HGETALL', p .. 'shape'), redis.call('HGETALL', p .. 'state'),
        redis.call('EXISTS', p .. 'seat:producer'), names, made, roles, redis.call('GET', p .. 'note') or ''}
"""
)
