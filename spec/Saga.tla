-------------------------------- MODULE Saga --------------------------------
(* A process manager: its inbox, its outbox and its deadlines, and a receiver of its commands.                       *)
(*                                                                                                                   *)
(* The log of the process and that of the receiver are each one scope with one aggregate. A record lands late or     *)
(* never, and counts if its head stands: Scope.tla shows why that is enough. So only the head, and what this protocol *)
(* adds, is in the fold here. What is performed rests on any prefix of the log: an instance may be slow, or cut off.  *)
(*                                                                                                                   *)
(* - An input is an event of another service. It may be delivered at any time and as often as the bounds allow: a     *)
(*   redelivery, a group that was reset, two members with one partition, and a dead letter that is redriven after     *)
(*   younger events, are all that.                                                                                    *)
(* - What a record sends is a command, whose position in the outbox is the offset of the record.                      *)
(* - Publishing is Publisher.tla: sessions overlap, so a command may be there several times.                          *)
(* - A kill is an instance that takes no further step.                                                                *)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  Inputs,     \* 1..n, in the order of the topic
  PosOf,      \* input -> its hive-position
  Sends,      \* inputs that send a command
  Schedules,  \* inputs that schedule the deadline
  Cancels,    \* inputs that cancel it
  Ends,       \* inputs at which the process ends: what it keeps then is that it has ended
  Mark,       \* TRUE: that is known for ever; FALSE: an ended process is like one that has never been
  After,      \* how long after the log's time a deadline is
  MaxTry,     \* records that are appended for one input, for one deadline and for one command
  MaxTime,    \* bound on time
  Skew,       \* by how much the clock of an instance may be ahead
  MaxOut,     \* bound on the outbox topic
  MaxReset,   \* how often the receiver begins again
  Inbox,      \* how an input is known to be a repeat: "source" (the sources are kept for ever), "position" (so are the
              \* hive-positions), "highest" (the highest source), "window" (the sources of the last IdsKept records)
  Commits,    \* when the offset is committed: "after" the verdict, "before" it
  Clock,      \* what says that a deadline has come: the "log", by the rule; or the "wall" clock of the instance
  FireByHead, \* TRUE: the record that fires a deadline names a head, as every record does
  Gapless,    \* TRUE: a command is published after those before it
  Receiver,   \* how a receiver knows a command again: "highest" (the aggregate keeps the highest position that it has
              \* taken, and what is not above it is a repeat), "window" (the ids of the last IdsKept records)
  InOrder,    \* TRUE: a command is performed when those before it for its aggregate are settled
  IdsKept

VARIABLES
  now,        \* the time of the brokers
  log, st, ok,       \* of the process: records, folds (st[n+1] is that of the first n records), verdicts
  net, sent,         \* records in flight, and all that were appended
  committed,         \* inputs whose offset is committed
  out,               \* the outbox topic: positions
  rlog, rst, rok, rnet, rsent,  \* of the receiver
  off, high, taken,             \* of its consumer: offset, highest position, positions taken
  dropped,                      \* positions that a consumer has settled, or has dropped and not taken before
  resets

process == <<log, st, ok, net, sent, committed>>
receiver == <<rlog, rst, rok, rnet, rsent, off, high, taken, dropped, resets>>
vars == <<now, process, out, receiver>>

None == 0
Max(S) == CHOOSE x \in S : \A y \in S : y <= x
Greater(a, b) == IF a > b THEN a ELSE b
End(s) == s[Len(s)]

----------------------------------------------------------------------------
(* The process. Its state: the sources that it has taken, and the deadline, if one is pending. *)
Empty == [n |-> 0, time |-> 0, head |-> None, seen |-> {}, due |-> None, ended |-> FALSE]
Repeat(s, i) ==
  \/ s.ended
  \/ CASE Inbox = "source" -> \E x \in s.seen : x[1] = i
       [] Inbox = "position" -> \E x \in s.seen : PosOf[x[1]] = PosOf[i]
       [] Inbox = "highest" -> \E x \in s.seen : x[1] >= i
       [] Inbox = "window" -> \E x \in s.seen : x[1] = i /\ s.n - x[2] <= IdsKept

(* The rule. A fire names the time that it is for. The log's time is that of the record, whatever comes of it. *)
Accepts(s, m, time) ==
  /\ m.head = s.head \/ (m.fires # None /\ ~FireByHead)
  /\ m.fires # None /\ Clock = "log" => time >= m.fires
Step(s, m, time) ==
  IF ~Accepts(s, m, time) THEN [s EXCEPT !.n = @ + 1, !.time = time]
  ELSE [n |-> s.n + 1, time |-> time, head |-> m.id,
        ended |-> s.ended \/ (Mark /\ m.input \in Ends),
        seen |-> CASE m.input \in Ends -> {} [] m.input = None -> s.seen [] OTHER -> s.seen \cup {<<m.input, s.n>>},
        due |-> CASE m.fires # None \/ m.input \in Ends -> None
                  [] m.input \in Schedules -> time + After
                  [] m.input \in Cancels -> None
                  [] OTHER -> s.due]

Put(input, fires, n) ==
  LET m == [id |-> Cardinality(sent) + 1, head |-> st[n+1].head, input |-> input, fires |-> fires]
  IN net' = net \cup {m} /\ sent' = sent \cup {m}
Tries(input, fires) == Cardinality({m \in sent : m.input = input /\ m.fires = fires})

(* An input is delivered and performed on some prefix. *)
Take(i) ==
  /\ Tries(i, None) < MaxTry
  /\ \E n \in 0..Len(log) : ~Repeat(st[n+1], i) /\ Put(i, None, n)
  /\ UNCHANGED <<now, log, st, ok, committed, out, receiver>>

(* The offset is committed: an instance has met the verdict, or takes the input for a repeat. *)
Commit(i) ==
  /\ i \notin committed
  /\ Repeat(End(st), i) \/ (Commits = "before" /\ Tries(i, None) > 0)
  /\ committed' = committed \cup {i}
  /\ UNCHANGED <<now, log, st, ok, net, sent, out, receiver>>

(* The leader fires a deadline that is pending in some prefix, when it believes that the time has come; or when it likes,
   as the rule decides. *)
Fire ==
  /\ \E n \in 0..Len(log) : LET due == st[n+1].due IN
       /\ due # None /\ Tries(None, due) < MaxTry
       /\ Clock = "wall" => now + Skew >= due
       /\ Put(None, due, n)
  /\ UNCHANGED <<now, log, st, ok, committed, out, receiver>>

Land == \E m \in net :
  /\ net' = net \ {m} /\ log' = Append(log, m)
  /\ st' = Append(st, Step(End(st), m, now)) /\ ok' = Append(ok, Accepts(End(st), m, now))
  /\ UNCHANGED <<now, sent, committed, out, receiver>>

Time == now < MaxTime /\ now' = now + 1 /\ UNCHANGED <<process, out, receiver>>

----------------------------------------------------------------------------
(* The outbox: the positions of accepted commands, in the order of the log. *)
Commands(n) == {k \in 1..n : ok[k] /\ (log[k].fires # None \/ log[k].input \in Sends)}
There == {out[k] : k \in DOMAIN out}
Publish ==
  /\ Len(out) < MaxOut
  /\ \E k \in Commands(Len(log)) :
       /\ Gapless => \A j \in Commands(k - 1) : j \in There
       /\ out' = Append(out, k)
  /\ UNCHANGED <<now, process, receiver>>

----------------------------------------------------------------------------
(* The receiver. Its state: the ids of commands on record, and the highest position. That is kept with the aggregate
   which takes the commands, as the sources of a process are: the verdict needs the head alone. With "window" the ids are
   those of the scope, and part of the verdict. *)
REmpty == [n |-> 0, head |-> None, ids |-> {}, high |-> 0]
OnRecord(s, k) == \E x \in s.ids : x[1] = k
RRepeat(s, k) == IF Receiver = "window" THEN OnRecord(s, k) ELSE k <= s.high
RAccepts(s, m) == m.head = s.head /\ (Receiver = "window" => ~OnRecord(s, m.command))
Keeps(ids, n) == {x \in ids : n - x[2] <= IdsKept}
RStep(s, m) ==
  LET yes == RAccepts(s, m)
      ids == IF yes THEN s.ids \cup {<<m.command, s.n>>} ELSE s.ids
  IN [n |-> s.n + 1, head |-> IF yes THEN m.id ELSE s.head, ids |-> Keeps(ids, s.n + 1),
      high |-> IF yes THEN Greater(s.high, m.command) ELSE s.high]

(* The next record of the outbox. A position that is not above the last one is a repeat. *)
Read ==
  /\ off < Len(out)
  /\ LET k == out[off + 1] IN
       IF k > high THEN high' = k /\ taken' = taken \cup {k} /\ UNCHANGED dropped
       ELSE dropped' = dropped \cup ({k} \ taken) /\ UNCHANGED <<high, taken>>
  /\ off' = off + 1
  /\ UNCHANGED <<now, process, out, rlog, rst, rok, rnet, rsent, resets>>

(* Any member of the group, the one before a reset too, gives a command that it has read to its aggregate. What it knows
   of those before it may be old; but what was settled stays settled. *)
Execute ==
  /\ \E k \in There : \E n \in 0..Len(rlog) :
       /\ InOrder => \A j \in There : j < k => RRepeat(End(rst), j)
       /\ Cardinality({m \in rsent : m.command = k}) < MaxTry
       /\ ~RRepeat(rst[n+1], k)
       /\ LET m == [id |-> Cardinality(rsent) + 1, head |-> rst[n+1].head, command |-> k]
          IN rnet' = rnet \cup {m} /\ rsent' = rsent \cup {m}
  /\ UNCHANGED <<now, process, out, rlog, rst, rok, off, high, taken, dropped, resets>>

RLand == \E m \in rnet :
  /\ rnet' = rnet \ {m} /\ rlog' = Append(rlog, m)
  /\ rst' = Append(rst, RStep(End(rst), m)) /\ rok' = Append(rok, RAccepts(End(rst), m))
  /\ UNCHANGED <<now, process, out, rsent, off, high, taken, dropped, resets>>

Settle ==
  /\ \E k \in taken \ dropped : RRepeat(End(rst), k) /\ dropped' = dropped \cup {k}
  /\ UNCHANGED <<now, process, out, rlog, rst, rok, rnet, rsent, off, high, taken, resets>>

(* Another member takes over from the beginning, or the group was reset. The old one may still have records in flight. *)
Reset ==
  /\ resets < MaxReset /\ off > 0
  /\ off' = 0 /\ high' = 0 /\ taken' = {} /\ resets' = resets + 1
  /\ UNCHANGED <<now, process, out, rlog, rst, rok, rnet, rsent, dropped>>

----------------------------------------------------------------------------
Init ==
  /\ now = 1
  /\ log = <<>> /\ st = <<Empty>> /\ ok = <<>> /\ net = {} /\ sent = {} /\ committed = {}
  /\ out = <<>>
  /\ rlog = <<>> /\ rst = <<REmpty>> /\ rok = <<>> /\ rnet = {} /\ rsent = {}
  /\ off = 0 /\ high = 0 /\ taken = {} /\ dropped = {} /\ resets = 0
Next == \/ \E i \in Inputs : Take(i) \/ Commit(i)
        \/ Fire \/ Land \/ Time \/ Publish \/ Read \/ Execute \/ RLand \/ Settle \/ Reset
Spec == Init /\ [][Next]_vars

----------------------------------------------------------------------------
Good == {k \in DOMAIN log : ok[k]}
RGood == {k \in DOMAIN rlog : rok[k]}
(* Invariant 12: each input has its effect once, *)
EffectOnce == \A j, k \in Good : log[j].input # None /\ log[j].input = log[k].input => j = k
(* and has it before it is never delivered again, unless the process has ended before it, *)
NoInputLost == \A i \in committed : (\E k \in Good : log[k].input = i) \/ End(st).ended
(* after which nothing has an effect on it, *)
NothingAfterItsEnd == \A j, k \in Good : log[j].input \in Ends /\ j < k => log[k].input = None /\ log[k].fires = None
(* each command is executed at most once, *)
ExecutedOnce == \A j, k \in RGood : rlog[j].command = rlog[k].command => j = k
(* and before it is passed over as one that was, *)
NoCommandLost == \A c \in dropped : \E k \in RGood : rlog[k].command = c
(* each deadline fires once in effect, not before its time by the log, *)
InTime == \A k \in Good : log[k].fires # None => st[k+1].time >= log[k].fires
(* and not where it was cancelled, is over or was put off. *)
OnlyPending == \A k \in Good : log[k].fires # None => st[k].due = log[k].fires
============================================================================
