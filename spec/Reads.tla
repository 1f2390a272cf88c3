------------------------------- MODULE Reads -------------------------------
(* Reads of one instance, and refusals that rest on them: which writes they include.                           *)
(* A broker that was the leader, and was paused or cut off while another was elected, goes on to answer: it     *)
(* names the end that the log had when it was deposed. What it hands out is a prefix of the log all the same.   *)
(* Appending is putting a record into `flight`; it lands once, at any later time, or never.                     *)
EXTENDS Naturals, Sequences, FiniteSets
CONSTANTS
  Readers,
  MaxLen,   \* of the log
  Deposed,  \* TRUE: a deposed leader may answer
  Mode      \* what a read waits for: "index": the end that a broker names; "proof": a record that this instance
            \* appends after the read has come, one for all that wait; "joined": any such record under way
VARIABLES
  log,      \* the partition: 0 is a write, n > 0 the proof number n
  ends,     \* the ends that deposed leaders name
  acked,    \* the last offset + 1 of an acknowledged write
  judged,   \* the instance has judged everything below
  flight,   \* proofs that were sent and have not landed
  proofs,   \* proofs sent so far
  read      \* reader -> its read
vars == <<log, ends, acked, judged, flight, proofs, read>>
New == [at |-> "new", least |-> 0, proof |-> 0, index |-> 0, saw |-> 0]
Init == /\ log = <<>> /\ ends = {} /\ acked = 0 /\ judged = 0 /\ flight = {} /\ proofs = 0
        /\ read = [r \in Readers |-> New]

Write == Len(log) < MaxLen /\ log' = Append(log, 0) /\ UNCHANGED <<ends, acked, judged, flight, proofs, read>>
(* Another instance reads its own record back, and acknowledges it. *)
Acknowledge == \E i \in DOMAIN log : /\ log[i] = 0 /\ i > acked /\ acked' = i
                                     /\ UNCHANGED <<log, ends, judged, flight, proofs, read>>
Depose == Deposed /\ ends' = ends \cup {Len(log)} /\ UNCHANGED <<log, acked, judged, flight, proofs, read>>
Judge == judged < Len(log) /\ judged' = judged + 1 /\ UNCHANGED <<log, ends, acked, flight, proofs, read>>
Land == \E p \in flight : /\ Len(log) < MaxLen /\ log' = Append(log, p) /\ flight' = flight \ {p}
                          /\ UNCHANGED <<ends, acked, judged, proofs, read>>

(* Proofs that this instance has sent and has not read back. *)
UnderWay == {p \in 1..proofs : p \in flight \/ \E i \in DOMAIN log : log[i] = p /\ i > judged}
Come(r) ==
  /\ read[r].at = "new"
  /\ \/ Mode = "index" /\ \E e \in ends \cup {Len(log)} :
          read' = [read EXCEPT ![r] = [New EXCEPT !.at = "waits", !.least = acked, !.index = e]]
     \/ Mode # "index" /\ read' = [read EXCEPT ![r] = [New EXCEPT !.at = "waits", !.least = acked]]
     \/ Mode = "joined" /\ \E p \in UnderWay :
          read' = [read EXCEPT ![r] = [New EXCEPT !.at = "waits", !.least = acked, !.proof = p]]
  /\ UNCHANGED <<log, ends, acked, judged, flight, proofs>>
(* One proof for all that have come and have none. *)
Prove ==
  /\ Mode # "index" /\ proofs < Cardinality(Readers) /\ \E r \in Readers : read[r].at = "waits" /\ read[r].proof = 0
  /\ proofs' = proofs + 1 /\ flight' = flight \cup {proofs + 1}
  /\ read' = [r \in Readers |-> IF read[r].at = "waits" /\ read[r].proof = 0 THEN [read[r] EXCEPT !.proof = proofs + 1]
                                ELSE read[r]]
  /\ UNCHANGED <<log, ends, acked, judged>>
Answer(r) ==
  /\ read[r].at = "waits"
  /\ IF Mode = "index" THEN judged >= read[r].index
     ELSE \E i \in 1..judged : log[i] = read[r].proof /\ read[r].proof > 0
  /\ read' = [read EXCEPT ![r].at = "done", ![r].saw = judged]
  /\ UNCHANGED <<log, ends, acked, judged, flight, proofs>>

Next == Write \/ Acknowledge \/ Depose \/ Judge \/ Land \/ Prove \/ \E r \in Readers : Come(r) \/ Answer(r)
Spec == Init /\ [][Next]_vars
(* A read includes every write that was acknowledged before it came. *)
Fresh == \A r \in Readers : read[r].at = "done" => read[r].saw >= read[r].least
============================================================================
