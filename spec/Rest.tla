------------------------------- MODULE Rest -------------------------------
(* Leaving a scope at rest: a note says where the log and the event topic ended when its last leader left it. A   *)
(* sweep takes a scope for one that needs nobody if the topics end there still. Every record has one event, and   *)
(* several may be sent as one group. Leases promise nothing, so any instances may publish and leave at once.      *)
(* Records land at any time, also when nobody follows; a group that was given up lands later, in its place, or    *)
(* never. A record may schedule a deadline, for which the leader has to stay, and another one fires it.           *)
EXTENDS Naturals, FiniteSets
CONSTANTS
  Instances,
  MaxLog,   \* records
  MaxTopic, \* groups on the event topic, with repeats
  Schedules, Fires, \* records that schedule the deadline, and that fire or cancel it
  Waits,    \* TRUE: a leader does not leave while the deadline is pending in what it has judged
  Mode      \* what is noted as the end of the log: "stored": what is judged, if all its events are stored; "sent": the
            \* same if they are stored or on their way; "end": the end that Kafka names, if all that is judged is stored
VARIABLES
  log,      \* records
  stored,   \* the events of the first records are on the topic
  topic,    \* groups on the topic
  note,     \* <<end of the log, end of the topic>>
  late,     \* groups that were given up: <<from, to>>
  at        \* instance -> its state
vars == <<log, stored, topic, note, late, at>>
Away == [is |-> "away", judged |-> 0, known |-> 0, way |-> 0, note |-> <<0, 0>>]
Init == /\ log = 0 /\ stored = 0 /\ topic = 0 /\ note = <<0, 0>> /\ late = {} /\ at = [i \in Instances |-> Away]

Append == log < MaxLog /\ log' = log + 1 /\ UNCHANGED <<stored, topic, note, late, at>>
(* The session resumes after what it finds on the topic. *)
Open(i) == /\ at[i].is = "away"
           /\ at' = [at EXCEPT ![i] = [Away EXCEPT !.is = "open", !.judged = stored, !.known = stored]]
           /\ UNCHANGED <<log, stored, topic, note, late>>
Judge(i) == /\ at[i].is = "open" /\ at[i].judged < log /\ at' = [at EXCEPT ![i].judged = @ + 1]
            /\ UNCHANGED <<log, stored, topic, note, late>>
Send(i) == /\ at[i].is = "open" /\ at[i].way = 0 /\ at[i].known < at[i].judged
           /\ at' = [at EXCEPT ![i].way = at[i].judged] /\ UNCHANGED <<log, stored, topic, note, late>>
Lands(from, to) == /\ topic < MaxTopic /\ from <= stored /\ topic' = topic + 1
                   /\ stored' = IF to > stored THEN to ELSE stored
Delivered(i) == /\ at[i].way > 0 /\ Lands(at[i].known, at[i].way)
                /\ at' = [at EXCEPT ![i].known = at[i].way, ![i].way = 0] /\ UNCHANGED <<log, note, late>>
GivenUp(i) == IF at[i].way > 0 THEN late \cup {<<at[i].known, at[i].way>>} ELSE late
Fail(i) == /\ at[i].is = "open" /\ at[i].way > 0 /\ late' = GivenUp(i)
           /\ at' = [at EXCEPT ![i].way = 0, ![i].known = stored] /\ UNCHANGED <<log, stored, topic, note>>
LandLate == \E g \in late : Lands(g[1], g[2]) /\ late' = late \ {g} /\ UNCHANGED <<log, note, at>>
Pending(n) == \E r \in Schedules : r <= n /\ \A f \in Fires : f > r => f > n
Rests(i) == /\ IF Mode = "sent" THEN at[i].known = at[i].judged \/ at[i].way = at[i].judged
               ELSE at[i].known = at[i].judged
            /\ Waits => ~Pending(at[i].judged)
(* It asks for the ends, and writes the note some time later. *)
Rest(i) == /\ at[i].is = "open" /\ Rests(i)
           /\ at' = [at EXCEPT ![i].is = "leaves", ![i].note = <<IF Mode = "end" THEN log ELSE at[i].judged, topic>>]
           /\ UNCHANGED <<log, stored, topic, note, late>>
Leave(i) == /\ at[i].is = "leaves" /\ note' = at[i].note /\ late' = GivenUp(i) /\ at' = [at EXCEPT ![i] = Away]
            /\ UNCHANGED <<log, stored, topic>>
Die(i) == /\ at[i].is # "away" /\ late' = GivenUp(i) /\ at' = [at EXCEPT ![i] = Away]
          /\ UNCHANGED <<log, stored, topic, note>>

Next == Append \/ LandLate
        \/ \E i \in Instances : Open(i) \/ Judge(i) \/ Send(i) \/ Delivered(i) \/ Fail(i) \/ Rest(i) \/ Leave(i) \/ Die(i)
Spec == Init /\ [][Next]_vars
(* A scope that is taken for one at rest has no event that is not published. *)
NothingLeft == note = <<log, topic>> => stored = log
(* And none that has a deadline to fire. *)
NothingPending == note = <<log, topic>> => ~Pending(log)
============================================================================
