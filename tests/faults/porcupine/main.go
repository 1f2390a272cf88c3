// A second opinion on the histories of the fault runs: porcupine judges whether each aggregate is linearizable.
// Standard input is one JSON line for each operation; exit code 1 and the names of aggregates that are not.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

type operation struct {
	Aggregate string
	Client    int
	Call      int64
	Return    int64
	Unknown   bool // no answer: it may have happened, at any time after the call, or not
	Read      bool
	Events    int64 // that a write adds
	Amount    int64 // that it adds to the balance
	Version   int64 // that was answered; -1 where none was
	Balance   int64 // that was read
	Refused   bool  // because the balance was below Needed
	Needed    int64
}

type state struct{ version, balance int64 }

func step(s, input, _ interface{}) []interface{} {
	now, do := s.(state), input.(operation)
	next := state{now.version + do.Events, now.balance + do.Amount}
	switch {
	case do.Read:
		if now.version == do.Version && now.balance == do.Balance {
			return []interface{}{now}
		}
		return nil
	case do.Refused:
		if now.balance < do.Needed {
			return []interface{}{now}
		}
		return nil
	case do.Unknown:
		return []interface{}{now, next}
	case do.Version >= 0 && do.Version != next.version:
		return nil
	}
	return []interface{}{next}
}

func main() {
	model := (&porcupine.NondeterministicModel{
		Init:  func() []interface{} { return []interface{}{state{}} },
		Step:  step,
		Equal: func(a, b interface{}) bool { return a == b },
	}).ToModel()
	histories := map[string][]porcupine.Operation{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var o operation
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		if o.Unknown {
			o.Return = math.MaxInt64
		}
		histories[o.Aggregate] = append(histories[o.Aggregate],
			porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Output: nil, Return: o.Return})
	}
	// Those that it cannot decide take their whole time: one for each processor, as their memory is large.
	var all sync.WaitGroup
	var illegal atomic.Bool
	places := make(chan struct{}, runtime.NumCPU())
	for name, history := range histories {
		all.Add(1)
		places <- struct{}{}
		go func(name string, history []porcupine.Operation) {
			defer all.Done()
			defer func() { <-places }()
			result := porcupine.CheckOperationsTimeout(model, history, 30*time.Second)
			fmt.Println(name, len(history), result)
			if result == porcupine.Illegal {
				illegal.Store(true)
			}
		}(name, history)
	}
	all.Wait()
	if illegal.Load() {
		os.Exit(1)
	}
}
