------------------------------ MODULE Forward ------------------------------
(* A forwarded command: instance B hands it to instance A, with its command id, and executes it as well when A is     *)
(* silent. Then both execute one *shared* command, and the log decides as in Scope.tla: a commit is accepted if its   *)
(* target is at the head that it names and its command id is not in the window. Ids leave the window.                 *)
(* `started_at`, the end of B's judged prefix before the first record of the command, is the offset 0.                *)
(*                                                                                                                    *)
(* Abstractions, each one a superset of what can happen, besides those of Scope.tla:                                  *)
(* - A packet is lost, late, or there twice: A begins at any time or never, once for each of its runs, and B reads an *)
(*   answer at any later time or never. Silence, pauses and kills are in that. A judged prefix is any prefix.         *)
(* - Performing and appending are one step: what lies between is delay, and a record lands late anyway.               *)
(* - The other aggregate stands for all others. Its records move the window on, and an actor may have read it without *)
(*   validating that.                                                                                                 *)
EXTENDS Naturals, Sequences, FiniteSets, TLC
CONSTANTS
  Takes,     \* the runs of A: one for each time that it takes the command out of its mailbox
  MaxTry,    \* commits that a run may append
  MaxOther,  \* records of the other aggregate
  Rival,     \* the instance that executes another command on the target, or "" for none
  MaxAsk,    \* how often the client asks for the outcome, which a barrier makes definite
  IdsKept,   \* records for which a command id is remembered
  LooksUp,   \* the command id is looked up: "each": before each perform too; "enter": only when a run begins
  Covered,   \* TRUE: no perform where the window at the end of the judged prefix does not reach back to started_at
  Ahead,     \* TRUE: a perform may rest on a state of the cache that is newer than the prefix of these two checks
  Own,       \* TRUE: no perform while the instance has another record of this command under way
  Recorded,  \* TRUE: a refusal is a record without events
  Actor,     \* what it decides: "any"; "guard": it refuses if and only if the other aggregate was written
  Late,      \* TRUE: B takes an answer of A also after it has begun to execute the command itself
  Declined   \* what a decline is for B: "end": it tells its client that nothing has happened; "own": the command is
             \* its own again, fresh and shared with nobody; "silence": no more than that
VARIABLES
  log,    \* the partition: records with their verdicts
  net,    \* records sent and not landed
  at,     \* run -> "away" (not begun), "queued", "waits" for its record, "over"
  tries,  \* run -> commits so far
  alone,  \* A has declined, and the command is B's own again
  mail,   \* answers of A to B
  told,   \* what the client was told
  rival,  \* the other command was performed
  asks    \* barriers of the client so far
vars == <<log, net, at, tries, alone, mail, told, rival, asks>>

Runs == Takes \cup {"B"}
Instance(r) == IF r \in Takes THEN "A" ELSE r
Root == <<"root", 0>>
----------------------------------------------------------------------------
(* The fold of the first n records. *)
Moves(n) == {i \in 1..n : log[i].ok /\ log[i].kind # "other"}
Last(S) == CHOOSE i \in S : \A j \in S : j <= i
HeadAt(n) == IF Moves(n) = {} THEN Root ELSE log[Last(Moves(n))].tx
Ids(n) == {i \in 1..n : log[i].id /\ n + 1 - i <= IdsKept}   \* where the command is on record, in the window
(* The rule. A barrier moves the head of the target, and closes a command id that is not in the window. *)
Judged(m) ==
  LET n == Len(log)
      ok == CASE m.kind = "commit" -> m.head = HeadAt(n) /\ Ids(n) = {}
              [] m.kind = "rival" -> m.head = HeadAt(n)
              [] OTHER -> TRUE
  IN m @@ [ok |-> ok, id |-> ok /\ m.kind \in {"commit", "barrier"} /\ Ids(n) = {}]
Answer(i) == IF log[i].kind = "barrier" THEN "closed" ELSE IF log[i].refusal THEN "refused" ELSE "accepted"
Reaches(n) == n <= IdsKept   \* an id that came on record after started_at is in the window

Record(kind, r, try, head, base, refusal) ==
  [kind |-> kind, run |-> r, tx |-> <<r, try>>, head |-> head, base |-> base, refusal |-> refusal]
----------------------------------------------------------------------------
Init == /\ log = <<>> /\ net = {} /\ at = [r \in Runs |-> "away"] /\ tries = [r \in Runs |-> 0] /\ alone = FALSE
        /\ mail = {} /\ told = {} /\ rival = FALSE /\ asks = 0

Other == /\ Cardinality({i \in DOMAIN log : log[i].kind = "other"}) < MaxOther
         /\ log' = Append(log, Judged(Record("other", "other", Len(log), Root, 0, FALSE)))
         /\ UNCHANGED <<net, at, tries, alone, mail, told, rival, asks>>
Land == /\ \E m \in net : net' = net \ {m} /\ log' = Append(log, Judged(m))
        /\ UNCHANGED <<at, tries, alone, mail, told, rival, asks>>

(* A run is over: A puts its answer into the mailbox of B, and B tells its client. *)
Says(r, answer) ==
  /\ at' = [at EXCEPT ![r] = "over"]
  /\ IF r = "B" THEN told' = told \cup answer /\ UNCHANGED mail ELSE mail' = mail \cup answer /\ UNCHANGED told
Quiet == UNCHANGED <<log, net, tries, alone, rival, asks>>

(* A takes the command out; B has waited for long enough. The id is looked up in the view and in the cache. *)
Begin(r) ==
  /\ at[r] = "away"
  /\ \E n \in 0..Len(log) : IF Ids(n) # {} THEN Says(r, {Answer(Last(Ids(n)))})
                            ELSE at' = [at EXCEPT ![r] = "queued"] /\ UNCHANGED <<mail, told>>
  /\ Quiet

(* Records that this instance has sent, and has not read back when it has judged n records. *)
Pending(i, n) == {m \in net : Instance(m.run) = i}
                 \cup {log[j] : j \in {j \in (n+1)..Len(log) : Instance(log[j].run) = i}}
(* A perform rests on the state after a prefix, or on what a pending record of its own instance will leave. *)
Perform(r) ==
  /\ at[r] = "queued" /\ tries[r] < MaxTry
  /\ \E n \in 0..Len(log) :
     LET shared == ~(r = "B" /\ alone) IN
     IF shared /\ LooksUp = "each" /\ Ids(n) # {} THEN Says(r, {Answer(Last(Ids(n)))}) /\ Quiet
     ELSE IF shared /\ Covered /\ ~Reaches(n) THEN Says(r, IF r = "B" THEN {} ELSE {"declined"}) /\ Quiet
     ELSE
       /\ Own => ~\E m \in Pending(Instance(r), n) : m.kind = "commit"
       /\ \E tip \in {<<HeadAt(b), b>> : b \in IF Ahead THEN n..Len(log) ELSE {n}}
                     \cup {<<m.tx, m.base>> : m \in {m \in Pending(Instance(r), n) : Ahead \/ m.base <= n}} :
          \E refuse \in IF Actor = "any" THEN {FALSE, TRUE} ELSE {\E i \in 1..tip[2] : log[i].kind = "other"} :
          \/ /\ refuse /\ (~Recorded \/ ~shared)
             \* read index: what was seen is the whole log, and nothing of it is pending
             /\ tip = <<HeadAt(Len(log)), Len(log)>> /\ n = Len(log) /\ Says(r, {"refused"}) /\ Quiet
          \/ /\ refuse => Recorded
             /\ net' = net \cup {Record("commit", r, tries[r] + 1, tip[1], tip[2], refuse)}
             /\ tries' = [tries EXCEPT ![r] = @ + 1] /\ at' = [at EXCEPT ![r] = "waits"]
             /\ UNCHANGED <<log, alone, mail, told, rival, asks>>

(* Another command, of an id that nobody else has. It may rest on any state, and on what is pending. *)
Rivals ==
  /\ Rival # "" /\ ~rival /\ rival' = TRUE
  /\ \E n \in 0..Len(log) : \E tip \in {<<HeadAt(n), n>>} \cup {<<m.tx, m.base>> : m \in Pending(Rival, n)} :
       net' = net \cup {[Record("rival", Rival, 0, tip[1], tip[2], FALSE) EXCEPT !.tx = <<"rival", 1>>]}
  /\ UNCHANGED <<log, at, tries, alone, mail, told, asks>>

(* It is out of retries: a barrier closes the command, before the answer says that nothing has happened. *)
Close(r) == /\ at[r] = "queued" /\ tries[r] = MaxTry /\ at' = [at EXCEPT ![r] = "waits"]
            /\ net' = net \cup {Record("barrier", r, MaxTry + 1, Root, 0, FALSE)}
            /\ tries' = [tries EXCEPT ![r] = @ + 1] /\ UNCHANGED <<log, alone, mail, told, rival, asks>>
(* What a barrier has made definite: the answer that was on record, or that it is closed. *)
Definite(i) == IF ~Reaches(i - 1) THEN {} ELSE IF Ids(i - 1) # {} THEN {Answer(Last(Ids(i - 1)))} ELSE {"closed"}

(* The instance reads its record back: accepted, or void. Of a void one it looks whether the command is on record. *)
ReadBack(r) ==
  /\ at[r] = "waits"
  /\ \E i \in DOMAIN log :
       /\ log[i].tx = <<r, tries[r]>>
       /\ IF log[i].kind = "barrier" THEN Says(r, Definite(i))
          ELSE IF log[i].ok THEN Says(r, {Answer(i)})
          ELSE IF Ids(i - 1) # {} THEN Says(r, {Answer(Last(Ids(i - 1)))})
          ELSE at' = [at EXCEPT ![r] = "queued"] /\ UNCHANGED <<mail, told>>
  /\ Quiet

(* A does not execute it, and has no record of this run under way: its deadline, a lock, too much work. *)
Decline(r) == r \in Takes /\ at[r] = "queued" /\ Says(r, {"declined"}) /\ Quiet

(* B takes an answer of A. *)
Take ==
  /\ at["B"] = "away" \/ (Late /\ at["B"] \in {"queued", "waits"})
  /\ \E x \in mail :
       IF x # "declined" THEN Says("B", {x}) /\ Quiet
       ELSE CASE Declined = "end" -> Says("B", {"nothing"}) /\ Quiet
              [] Declined = "own" /\ at["B"] = "away" ->
                   /\ alone' = TRUE /\ at' = [at EXCEPT !["B"] = "queued"]
                   /\ UNCHANGED <<log, net, tries, mail, told, rival, asks>>
              [] OTHER -> FALSE

(* B's deadline. The outcome is unknown, unless nobody else has the command and B has nothing under way. *)
Expire == /\ at["B"] \in {"away", "queued", "waits"}
          /\ Says("B", IF alone /\ at["B"] = "queued" THEN {"nothing"} ELSE {}) /\ Quiet

(* The client asks for an unknown outcome, at any instance: a barrier makes it definite. *)
Ask == /\ at["B"] = "over" /\ told = {} /\ asks < MaxAsk
       /\ asks' = asks + 1 /\ net' = net \cup {Record("barrier", "asks", asks + 1, Root, 0, FALSE)}
       /\ UNCHANGED <<log, at, tries, alone, mail, told, rival>>
Told == /\ \E i \in DOMAIN log : log[i].tx[1] = "asks" /\ told' = told \cup Definite(i)
        /\ Quiet /\ UNCHANGED <<at, mail>>

Next == Other \/ Land \/ Rivals \/ Take \/ Expire \/ Ask \/ Told
        \/ \E r \in Runs : Begin(r) \/ Perform(r) \/ Close(r) \/ ReadBack(r) \/ Decline(r)
Spec == Init /\ [][Next]_vars
----------------------------------------------------------------------------
Good == {i \in DOMAIN log : log[i].ok /\ log[i].kind = "commit"}
Does(i) == ~log[i].refusal
(* The command is accepted once, for all time: events or a refusal. *)
Once == Cardinality(Good) <= 1
(* What the client was told is on record, and nothing that contradicts it is, or ever will be. Only the refusal of a  *)
(* command that is shared with nobody needs no record.                                                               *)
AcceptedTrue == "accepted" \in told => \E i \in Good : Does(i)
RefusedTrue == "refused" \in told => alone \/ \E i \in Good : ~Does(i)
RefusedNever == "refused" \in told => ~\E i \in Good : Does(i)
NothingNever == told \cap {"nothing", "closed"} # {} => Good = {}
(* Whoever declines has not executed it and never will. *)
DeclinedNever == "declined" \in mail => ~\E i \in Good : log[i].run \in Takes
============================================================================
