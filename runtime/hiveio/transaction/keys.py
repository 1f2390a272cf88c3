"""Every key of a log in Redis, and what it holds.

``<scope>`` is ``hive:{<log topic>/<partition>/<topic id>}``: the braces keep a scope on one shard, and the topic id
tells the log from others of its name, in another cluster or gone. ``<mark>`` is ``<scope>:<fingerprint>``, one for each
version of the models and of the layout of these keys, so old and new run side by side.

The documents have the same table, and tests look for keys that it does not have.
"""

KEYS = {
    "<mark>": "the watermark: `offset|time|topic id|generation|format|stamp|floor|known|transaction id before it`; "
    "`time` is the log's clock, `stamp` the latest timestamp, `known` the newest format that its writer knows",
    "<mark>:rest": "`end of the log:end of the event topic` (with process managers `:end of the outbox` too) when the "
    "last leader left the scope, which nobody used: everything was applied and published, and no process ran",
    "<mark>:fold": "the lease of the instance that folds a cache which is far behind",
    "<mark>:<gen>:writers": "hash: writer → `number:offset` of its latest record",
    "<mark>:<gen>:a:<aggregate>": "`version head snapshot`; with events next to it that could not be folded: `version "
    "head ~offset size snapshot events`, where `offset` is that of their first record and `size` the bytes of the "
    "snapshot (nothing is between it and the events). Of a process, `=size process` comes before the snapshot or the "
    "`~`: its inputs, deadlines and unanswered commands as JSON (nothing is behind it)",
    "<mark>:<gen>:processes": "sorted set, the list of processes: one with deadlines → when the first of them is due, "
    "by the log's clock; `?` and one that waits for answers → 2^50 and the log's time at which it sent the oldest "
    "command; `+` and one that runs → 2^51; `!` and one that is stuck → 2^52",
    "<mark>:<gen>:unfolded": "set: the aggregates with such events, and `<actor>/` of actors that are not here",
    "<mark>:<gen>:ids": "hash: command id → `offset:time:keyed`",
    "<mark>:<gen>:order:<keyed>": "list: the same, oldest first, to forget by; `<keyed>` is 1 for an Idempotency-Key",
    "<mark>:<gen>:verdicts:<n>": "bitmap of 65,536 verdicts",
    "<mark>:<gen>:floor": "the first of these bitmaps that is kept",
    "<scope>:lock:<aggregate>": "the lock: the token of its instance, on the nodes of `LOCK_URLS`",
    "<scope>:tip:<aggregate>": "the last record of the instance that released the lock last, for as long as a lock "
    "lasts",
    "<scope>:wishes:<aggregate>": "hash: instance that waits for the lock → since when it waits and when it last asked",
    "<scope>:intent:<aggregate>": "phase one of a transaction",
    "<scope>:publisher": "the lease of the publisher",
    "<scope>:published": "is there once events of this log were published",
    "<scope>:outbox": "is there once commands of processes of this log were published",
    "<scope>:asked": "hash: process → what `hiveio saga` asks the leader to do: `retry`, or `skip` and the input",
    "<scope>:ready": "what readiness writes",
    "hive:logs:{<log topic>}": "set: the topic ids of all logs of this name that were here",
    "hive:mail:{<log topic>/<topic id>/<instance>}": "list: the mailbox of an instance, with packets of commands that "
    "others forward to it and of answers to its own; dropped 5 s after the last packet",
    "hive:mail:{<log topic>/<topic id>/<instance>}:open": "the fingerprints of the models and of the commands of an "
    "instance, while it takes commands of others",
    "hive:instances:{<log topic>/<topic id>}": "hash: instance → JSON: where it listens, its version, its fingerprint",
}
