// node-redlock on ioredis: one client for the one node, `acquire` and `release` as its documentation shows.
// https://github.com/mike-marcacci/node-redlock#usage
// It speaks with the benchmark as benchmarks/worker.py does.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import Client from "ioredis";
import Redlock from "redlock";

const LOCK_FOR_MS = 30_000;
const client = new Client(process.argv[2]);
// A lock that is taken is an error here, and nothing to wait for.
const redlock = new Redlock([client], { retryCount: 0 });

async function call(name, end) {
  let pairs = 0;
  do {
    const lock = await redlock.acquire([`node-redlock:${name}`], LOCK_FOR_MS);
    await lock.release();
    pairs += 1;
  } while (performance.now() < end);
  return pairs;
}

const version = (name) =>
  JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

await client.ping();
const versions = { redlock: version("redlock").replace(/^v/, ""), ioredis: version("ioredis"), node: process.version.slice(1) };
say({ versions });
for await (const line of createInterface({ input: process.stdin })) {
  const { names, seconds } = JSON.parse(line);
  globalThis.gc?.();
  const start = performance.now();
  const pairs = await Promise.all(names.map((name) => call(name, start + seconds * 1000)));
  say({ pairs: pairs.reduce((sum, one) => sum + one), seconds: (performance.now() - start) / 1000 });
}
client.disconnect();
