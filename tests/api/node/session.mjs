// A client in another language, written from the API's description alone: nothing but fetch. It walks through every
// endpoint as a booking service and a shopper's browser would, and stops with a message where an answer is not as
// documented.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

const { BASE_URL, SECRET_KEY, PUBLIC_KEY } = process.env;

const SLOT_FIELDS = [
  "_object", "available", "resource_id", "capacity", "created_at", "end_date", "id", "lockable", "locked_until",
  "metadata", "num_active_bookings", "num_bookings", "num_cancelled_bookings", "start_date", "status", "updated_at",
];
const BOOKING_FIELDS = ["_object", "resource_id", "created_at", "id", "metadata", "slot_id", "status", "updated_at"];
const DATE = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

async function call(key, method, path, { body, query, headers = {} } = {}) {
  const url = new URL(BASE_URL + path);
  for (const [name, value] of Object.entries(query ?? {})) {
    url.searchParams.set(name, value instanceof Date ? value.toJSON() : String(value));
  }
  const answer = await fetch(url, {
    method,
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const envelope = await answer.json();
  const { data, error, meta, success } = envelope;
  if (success) {
    assert.equal(answer.status, 200, `${method} ${path}`);
    assert.deepEqual(Object.keys(envelope), ["data", "meta", "success"], `${method} ${path}`);
  } else {
    assert.equal(answer.status, error.status, `${method} ${path}`);
    assert.deepEqual(Object.keys(envelope), ["error", "success"], `${method} ${path}`);
  }
  return { data, error, meta, success, status: answer.status, headers: answer.headers };
}

const asService = (...request) => call(SECRET_KEY, ...request);
const asBrowser = (...request) => call(PUBLIC_KEY, ...request);

function isSlot(slot) {
  assert.deepEqual(Object.keys(slot), SLOT_FIELDS);
  assert.equal(slot._object, "slot");
  for (const name of ["created_at", "updated_at"]) assert.match(slot[name], DATE);
  if (slot.locked_until !== null) assert.match(slot.locked_until, DATE);
  assert.equal(slot.num_bookings, slot.num_active_bookings + slot.num_cancelled_bookings);
}

function isBooking(booking) {
  assert.deepEqual(Object.keys(booking), BOOKING_FIELDS);
  assert.equal(booking._object, "booking");
  for (const name of ["created_at", "updated_at"]) assert.match(booking[name], DATE);
}

function refused(answer, code, status) {
  assert.equal(answer.success, false, `${code} was expected`);
  assert.deepEqual([answer.error.code, answer.status], [code, status]);
  assert.equal(typeof answer.error.message, "string");
}

const seen = new Set();
const said = (name) => seen.add(name);

const resource_id = randomUUID();
const in10Minutes = () => new Date(Date.now() + 10 * 60 * 1000);

// The service opens two slots.
const given = {
  resource_id,
  start_date: "2030-10-21T22:30:00+02:00",
  end_date: "2030-10-21T22:50:00+02:00",
  capacity: 1,
};
let answer = await asService("POST", "/slots", { body: given });
const slot = answer.data;
isSlot(slot);
assert.deepEqual(
  [slot.start_date, slot.end_date, slot.capacity, slot.lockable, slot.locked_until, slot.available, slot.status],
  [given.start_date, given.end_date, 1, true, null, true, "active"],
);
assert.deepEqual(answer.meta, {});
refused(await asBrowser("POST", "/slots", { body: given }), "E015", 401);
refused(await asService("POST", "/slots", { body: { ...given, capacity: 0 } }), "E047", 400);
refused(await asService("POST", "/slots", { body: { ...given, end_date: given.start_date } }), "E023", 422);
said("create a slot");

// The published client sends slots in a list, and expects a list.
answer = await asService("POST", "/slots", {
  body: [{ ...given, start_date: new Date("2030-10-22T10:00:00Z"), end_date: new Date("2030-10-22T11:00:00Z"), capacity: 2 }],
});
const [second] = answer.data;
isSlot(second);
assert.deepEqual([second.start_date, second.capacity], ["2030-10-22T10:00:00.000Z", 2]);
said("create slots");

// A browser looks for something free.
answer = await asBrowser("GET", "/slots", { query: { limit: 20, page: 1, available: true, resource_id } });
assert.deepEqual(answer.data.map(({ id }) => id), [slot.id, second.id]);
assert.deepEqual(answer.meta, { limit: 20, page: 1, total: 2 });
answer.data.forEach(isSlot);
answer = await asBrowser("GET", "/slots", {
  query: { limit: 1, page: 1, resource_id, start_date: new Date("2030-10-22T00:00:00Z"), end_date: new Date("2030-10-23T00:00:00Z") },
});
assert.deepEqual(answer.data.map(({ id }) => id), [second.id]);
refused(await asBrowser("GET", "/slots"), "E013", 400);
said("list slots");

isSlot((await asBrowser("GET", `/slots/${slot.id}`)).data);
refused(await asBrowser("GET", `/slots/${randomUUID()}`), "E025", 404);
said("get a slot");

// Two shoppers want the same slot.
const mine = { lock_until: in10Minutes(), lock_key: `lock_key_${randomUUID()}` };
answer = await asBrowser("POST", `/slots/${slot.id}/lock`, { body: mine });
isSlot(answer.data);
assert.deepEqual([answer.data.available, answer.data.locked_until], [true, mine.lock_until.toJSON()]);
assert.match(answer.headers.get("X-Fencing-Token"), /^\d+$/);
const token = answer.headers.get("X-Fencing-Token");
answer = await asBrowser("POST", `/slots/${slot.id}/lock`, { body: { lock_until: in10Minutes(), lock_key: "another" } });
refused(answer, "E045", 422);
assert.equal(answer.error.details.locked_until, mine.lock_until.toJSON());
assert.ok(Number(answer.headers.get("Retry-After")) > 0);
answer = await asBrowser("POST", `/slots/${slot.id}/lock`, { body: mine });
assert.equal(answer.headers.get("X-Fencing-Token"), token);
answer = await asBrowser("POST", `/slots/${slot.id}/lock`, { body: { ...mine, lock_until: new Date(0) } });
refused(answer, "E013", 400);
assert.equal(answer.error.param, "lock_until");
assert.equal((await asBrowser("GET", `/slots/${slot.id}`)).data.available, false);
answer = await asBrowser("GET", `/slots/${slot.id}`, { headers: { "X-Lock-Key": mine.lock_key } });
assert.equal(answer.data.available, true);
said("lock a slot");

refused(await asBrowser("POST", `/slots/${slot.id}/unlock`, { body: { lock_key: "another" } }), "E059", 403);
answer = await asBrowser("POST", `/slots/${slot.id}/unlock`, { body: { lock_key: mine.lock_key } });
isSlot(answer.data);
assert.equal(answer.data.locked_until, null);
assert.equal((await asBrowser("POST", `/slots/${slot.id}/unlock`, { body: { lock_key: mine.lock_key } })).success, true);
said("unlock a slot");

// An operator sees who holds what, and ends a lock by force.
await asBrowser("POST", `/slots/${slot.id}/lock`, { body: mine });
answer = await asService("GET", "/locks", { query: { limit: 50, page: 1 } });
assert.ok(answer.data.some((lock) => lock.slot_id === slot.id));
assert.ok(!JSON.stringify(answer.data).includes(mine.lock_key));
refused(await asBrowser("POST", `/slots/${slot.id}/unlock`, { body: { force: true } }), "E015", 401);
assert.equal((await asService("POST", `/slots/${slot.id}/unlock`, { body: { force: true } })).data.locked_until, null);
said("force an unlock");

// A shopper locks and books; nobody else can in between.
await asBrowser("POST", `/slots/${slot.id}/lock`, { body: mine });
refused(await asBrowser("POST", "/bookings", { body: { slot_id: slot.id } }), "E050", 422);
const once = { "Idempotency-Key": randomUUID() };
const wanted = { slot_id: slot.id, lock_key: mine.lock_key, metadata: { name: "Ada" } };
answer = await asBrowser("POST", "/bookings", { body: wanted, headers: once });
const booking = answer.data;
isBooking(booking);
assert.deepEqual(
  [booking.slot_id, booking.resource_id, booking.status, booking.metadata],
  [slot.id, resource_id, "active", { name: "Ada" }],
);
assert.deepEqual(answer.meta, {});
assert.deepEqual((await asBrowser("POST", "/bookings", { body: wanted, headers: once })).data, booking);
refused(await asBrowser("POST", "/bookings", { body: { slot_id: slot.id } }), "E049", 422);
const counted = (await asBrowser("GET", `/slots/${slot.id}`)).data;
assert.deepEqual([counted.num_active_bookings, counted.available, counted.locked_until], [1, false, null]);
answer = await asBrowser("POST", "/bookings", { body: { slot_id: second.id, lock_key: "of a lock that ended" } });
assert.deepEqual(answer.meta, { lock: "expired" });
const other = answer.data;
said("book");

assert.deepEqual((await asBrowser("GET", `/bookings/${booking.id}`)).data, booking);
refused(await asBrowser("GET", `/bookings/${randomUUID()}`), "E048", 404);
answer = await asBrowser("GET", "/bookings", { query: { limit: 50, page: 1, resource_id } });
assert.deepEqual(answer.data.map(({ id }) => id), [booking.id, other.id]);
assert.deepEqual(answer.meta, { limit: 50, page: 1, total: 2 });
answer = await asBrowser("GET", "/bookings", { query: { limit: 50, page: 1, slot_id: slot.id, status: "cancelled" } });
assert.deepEqual(answer.data, []);
said("get and list bookings");

answer = await asBrowser("PATCH", `/bookings/${booking.id}`, { body: { metadata: { name: "Grace" } } });
assert.deepEqual(answer.data.metadata, { name: "Grace" });
assert.equal((await asBrowser("POST", `/bookings/${booking.id}/cancel`)).data.status, "cancelled");
assert.equal((await asBrowser("GET", `/slots/${slot.id}`)).data.num_cancelled_bookings, 1);
assert.equal((await asBrowser("POST", `/bookings/${booking.id}/enable`)).data.status, "active");
answer = await asBrowser("POST", `/bookings/${booking.id}/reschedule`, { body: { target_slot_id: second.id } });
assert.deepEqual([answer.data.slot_id, answer.data.status], [second.id, "active"]);
refused(await asBrowser("POST", `/bookings/${booking.id}/reschedule`, { body: { target_slot_id: "none" } }), "E025", 404);
assert.equal((await asBrowser("GET", `/slots/${slot.id}`)).data.num_bookings, 0);
assert.equal((await asBrowser("GET", `/slots/${second.id}`)).data.num_active_bookings, 2);
said("update, cancel, enable and reschedule a booking");

// The service changes slots.
answer = await asService("PATCH", `/slots/${second.id}`, { body: { capacity: 3, metadata: { floor: 2 } } });
assert.deepEqual([answer.data.capacity, answer.data.metadata, answer.data.available], [3, { floor: 2 }, true]);
refused(await asService("PATCH", `/slots/${second.id}`, { body: { capacity: 1 } }), "E046", 422);
answer = await asService("PATCH", `/slots/${second.id}`, { body: { lockable: false } });
assert.equal(answer.data.lockable, false);
answer = await asBrowser("POST", `/slots/${second.id}/lock`, { body: mine });
refused(answer, "E044", 422);
assert.equal(answer.error.reason, "not_lockable");
assert.equal((await asService("POST", `/slots/${second.id}/disable`)).data.status, "disabled");
refused(await asBrowser("POST", "/bookings", { body: { slot_id: second.id } }), "E051", 422);
assert.equal((await asService("POST", `/slots/${second.id}/enable`)).data.status, "active");
said("update, disable and enable a slot");

refused(await asService("DELETE", `/slots/${second.id}`), "E060", 422);
refused(await asBrowser("DELETE", `/bookings/${booking.id}`), "E015", 401);
assert.deepEqual((await asService("DELETE", `/bookings/${booking.id}`)).data, {});
assert.deepEqual((await asService("DELETE", `/bookings/${other.id}`)).data, {});
assert.deepEqual((await asService("DELETE", `/slots/${second.id}`)).data, {});
assert.deepEqual((await asService("DELETE", `/slots/${slot.id}`)).data, {});
refused(await asService("DELETE", `/slots/${slot.id}`), "E025", 404);
said("delete");

// What every client meets one day.
refused(await call("sk_" + "0".repeat(64), "GET", "/slots"), "E055", 401);
refused(await call(PUBLIC_KEY, "GET", "/nothing/here"), "E002", 404);
const noKey = await fetch(`${BASE_URL}/slots`);
assert.deepEqual([noKey.status, (await noKey.json()).error.code], [401, "E056"]);
const broken = await fetch(`${BASE_URL}/bookings`, {
  method: "POST",
  headers: { Authorization: `Bearer ${PUBLIC_KEY}`, "Content-Type": "application/json" },
  body: "{",
});
assert.deepEqual([broken.status, (await broken.json()).error.code], [400, "E013"]);
const preflight = await fetch(`${BASE_URL}/slots/x/lock`, {
  method: "OPTIONS",
  headers: { Origin: "https://shop.example", "Access-Control-Request-Method": "POST" },
});
assert.equal(preflight.headers.get("Access-Control-Allow-Origin"), "*");
for (const path of ["/healthz", "/readyz"]) {
  const health = await fetch(BASE_URL + path);
  assert.deepEqual([health.status, (await health.json()).success], [200, true]);
}
assert.equal((await (await fetch(`${BASE_URL}/openapi.json`)).json()).openapi.slice(0, 2), "3.");
said("be refused");

console.log(JSON.stringify([...seen]));
