// Calls each role through types that openapi-typescript made from its /openapi.json: what does not compile is a fault of
// the document, and what is not answered so is a fault of the service.
import createClient from "openapi-fetch";
import type { paths as Base } from "./base.js";
import type { paths as Consumer } from "./consumer.js";
import type { paths as Processor } from "./processor.js";
import type { paths as Producer } from "./producer.js";

declare const process: { argv: string[] };
const [, , baseUrl, producerUrl, consumerUrl, processorUrl, topic] = process.argv;

function check(holds: unknown, text: string): asserts holds {
  if (!holds) throw new Error(text);
}

// A list of events is an array; a query has its parameters, also repeated ones.
const base = createClient<Base>({ baseUrl });
const split = await base.POST("/orders/{id}", {
  params: { path: { id: "o 1/ü" }, header: { "Idempotency-Key": "k" } },
  body: { type: "Split", payload: { into: 2 } },
});
check(Array.isArray(split.data), "an array");
const numbers: number[] = split.data.map((part) => part.payload.number);
check(numbers.join() === "0,1", "the parts");
const overview = await base.GET("/orders/{id}", { params: { path: { id: "1" }, query: { tags: ["a", "b"], limit: 7 } } });
check(JSON.stringify(overview.data).includes('["a","b"]'), "repeated parameters");
const refused = await base.POST("/orders/{id}", {
  params: { path: { id: "1" } },
  body: { type: "Order", payload: { lines: [], colour: "red" } },
});
check(refused.error?.status === 422 && refused.error.least === 1, "a member of the actor's own");

// One event and batches, with the answer of each record.
const producer = createClient<Producer>({ baseUrl: producerUrl });
const stored = await producer.POST("/readings", { body: { sensor: "attic", celsius: 20.5, count: 1 } });
check(stored.data && typeof stored.data === "object" && "type" in stored.data && stored.data.type === "Reading", "the event");
const position = stored.response.headers.get("Hive-Position");
check(position?.startsWith(`${topic}/0/`), "its position");
const batch = await producer.POST("/readings", {
  body: [
    { type: "Reading", payload: { sensor: "attic", celsius: 21, count: 1 }, meta: { source: "client" } },
    { type: "Reading", payload: { sensor: "attic", celsius: -300, count: 1 } },
  ],
});
check(batch.response.status === 207, "a batch of which one is refused");
check(Array.isArray(batch.data) && batch.data.map((each) => "status" in each && each.status).join() === "200,422", "each");

const consumer = createClient<Consumer>({ baseUrl: consumerUrl });
const latest = await consumer.GET("/readings/{sensor}", {
  params: { path: { sensor: "attic" }, header: { "Hive-Position": position ?? "", Prefer: "wait=9" } },
});
check(latest.data && "payload" in latest.data && latest.data.payload.celsius! >= 20.5, "what was written");
const warmest = await consumer.GET("/warmest", { params: { query: { above: 20, sensors: ["attic"] } } });
check(Array.isArray(warmest.data) && warmest.data[0].payload.celsius! >= 20.5, "a list of models");

// The type tells messages apart; headers of requests and answers; the outcome of a transaction.
const processor = createClient<Processor>({ baseUrl: processorUrl });
const path = { id: "typescript" };
const opened = await processor.POST("/accounts/{id}", {
  params: { path, header: { "Idempotency-Key": "open" } },
  body: { type: "Open", payload: { owner: "Ada" } },
});
const event = opened.data;
check(event && !Array.isArray(event) && event.type === "Opened" && event.payload.owner === "Ada", "one event");
const version = opened.response.headers.get("ETag");
check(version === '"1"', "its version");
const deposited = await processor.POST("/accounts/{id}", {
  params: { path, header: { "If-Match": version } },
  body: { type: "Deposit", payload: { amounts: [3, 4] } },
});
check(Array.isArray(deposited.data) && deposited.data.length === 2, "two events");
const late = await processor.POST("/accounts/{id}", {
  params: { path, header: { "If-Match": version } },
  body: { type: "Deposit", payload: { amounts: [1] } },
});
check(late.response.status === 412 && late.error?.title, "another version");
const state = await processor.GET("/accounts/{id}", { params: { path, query: { consistency: "linearizable" } } });
check(state.data?.payload.balance === 7, "the state");
const outcome = await processor.GET("/transactions/{id}", { params: { path: { id: "none" } } });
check(outcome.response.status === 404 && outcome.error, "no such transaction");
