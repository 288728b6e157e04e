// A checkout: lock a slot, and book it. node checkout.mjs <sidecar's name> <Redis: a socket's path, or host:port>
import { randomBytes } from "node:crypto";
import { connect, SidecarError } from "./sidecar.mjs";

const [name, redis] = process.argv.slice(2);
const [host, port] = redis.split(":");
const where = port ? { host, port: Number(port) } : { path: redis };
const sidecar = await connect({
  where,
  name,
  client: "web",
  username: process.env.REDIS_USERNAME,
  password: process.env.REDIS_PASSWORD,
});

const slot = (
  await sidecar.request("create_slot", {
    resource_id: "court-1",
    start_date: "2030-06-01T18:00:00Z",
    end_date: "2030-06-01T19:00:00Z",
    capacity: 1,
  })
).data;
const lockKey = randomBytes(16).toString("hex"); // a secret: who has it can unlock
const lock = await sidecar.request("lock", { slot_id: slot.id, lock_key: lockKey, lock_for_ms: 600_000 });
console.log("locked until", lock.data.locked_until, "with fencing token", lock.fencing_token);
try {
  await sidecar.request("lock", { slot_id: slot.id, lock_key: "another", lock_for_ms: 600_000 });
} catch (error) {
  if (!(error instanceof SidecarError)) throw error;
  console.log("another is told", error.code, "and may come back in", error.details.retry_after_ms, "ms");
}
const booking = await sidecar.request("book", { slot_id: slot.id, lock_key: lockKey, metadata: { name: "Ada" } });
console.log("booked", booking.data.status, booking.data.metadata.name);
sidecar.close();
