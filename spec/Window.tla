------------------------------- MODULE Window -------------------------------
(* The window in which keyed command ids are remembered, by the log's clock. A record carries the clock of the broker *)
(* that was the leader, which may jump ahead and back, by any amount, at any record. The log's clock is made of these *)
(* stamps: "latest" (format 1) is the highest so far; "steps" (format 2) is the sum of the steps from each record to  *)
(* the next, of which none is below 0 or above the Steps-th part of the window.                                      *)
(* Scope.tla shows that nothing else depends on when an id leaves the window.                                        *)
EXTENDS Naturals, Sequences
CONSTANTS MaxLen, Stamps, Steps, Step, Clock
VARIABLES stamp, time   \* of each record: the broker's clock; the log's
vars == <<stamp, time>>
Init == stamp = <<>> /\ time = <<>>
Lesser(a, b) == IF a < b THEN a ELSE b
Greater(a, b) == IF a > b THEN a ELSE b
Went(a, b) == IF b > a THEN b - a ELSE 0
Next == /\ Len(stamp) < MaxLen
        /\ \E s \in Stamps : LET n == Len(stamp) IN
             /\ stamp' = Append(stamp, s)
             /\ time' = Append(time, IF n = 0 THEN s ELSE IF Clock = "latest" THEN Greater(time[n], s)
                                     ELSE time[n] + Lesser(Went(stamp[n], s), Step))
Spec == Init /\ [][Next]_vars
----------------------------------------------------------------------------
Now == Len(time)
Forgotten(i) == time[Now] - time[i] > Steps * Step   \* the id that record i brought
Jumps(i, j) == {k \in i..(j-1) : Went(stamp[k], stamp[k+1]) > Step}
RECURSIVE Gone(_, _)
(* The time that went by between two records on the brokers' clocks, without jumps. *)
Gone(i, j) == IF i >= j THEN 0 ELSE Gone(i, j - 1) + (IF j - 1 \in Jumps(i, j) THEN 0 ELSE Went(stamp[j-1], stamp[j]))
RECURSIVE Size(_)
Size(S) == IF S = {} THEN 0 ELSE 1 + Size(S \ {CHOOSE x \in S : TRUE})
(* Not at once: each jump takes a Steps-th part of the window, and no more. *)
KeptLong == \A i \in 1..Now : Forgotten(i) => Gone(i, Now) + Size(Jumps(i, Now)) * Step > Steps * Step
(* Nor never: once the clocks have gone on for more than a window, by steps that each are none too long, it is *)
(* forgotten, wherever the clocks had been before.                                                             *)
LetGo == \A i \in 1..Now : Gone(i, Now) > Steps * Step => Forgotten(i)
(* The order in which ids are forgotten is that of the log. *)
InOrder == \A i \in 1..Now : i > 1 => time[i-1] <= time[i]
============================================================================
