// A client of an overbooked-lock sidecar, with nothing but Node itself. With a Redis library, only `wire` falls away.
import net from "node:net";
import { randomUUID } from "node:crypto";

// One connection: sends commands, and hands on whatever the server says (RESP2).
function wire(where, onReply, onLost) {
  const socket = net.connect(where);
  let pending = Buffer.alloc(0);
  socket.on("data", (data) => {
    pending = Buffer.concat([pending, data]);
    for (let read; (read = parse(pending, 0)); pending = pending.subarray(read.end)) onReply(read.value);
  });
  socket.on("error", () => {}); // "close" follows
  socket.on("close", () => onLost(new Error("the connection to Redis is lost")));
  const send = (...words) => {
    const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
    socket.write(`*${words.length}\r\n${parts.join("")}`);
  };
  return { send, close: () => socket.destroy() };
}

// The reply at a place of the buffer, and where it ends; nothing if it is not whole yet.
function parse(buffer, at) {
  const line = buffer.indexOf("\r\n", at);
  if (line < 0) return undefined;
  const [kind, text] = [buffer.toString("latin1", at, at + 1), buffer.toString("utf8", at + 1, line)];
  let end = line + 2;
  if (kind === "$" && text !== "-1") {
    if (buffer.length < end + Number(text) + 2) return undefined;
    return { value: buffer.toString("utf8", end, end + Number(text)), end: end + Number(text) + 2 };
  }
  if (kind === "*") {
    const value = [];
    for (let left = Number(text); left > 0; left -= 1) {
      const item = parse(buffer, end);
      if (!item) return undefined;
      value.push(item.value);
      end = item.end;
    }
    return { value, end };
  }
  return { value: kind === "-" ? new Error(text) : kind === ":" ? Number(text) : text, end };
}

export class SidecarError extends Error {
  constructor(error) {
    super(error.message);
    Object.assign(this, error); // code, status, and perhaps reason, param, details
  }
}

// `where` is what node:net connects to: { path } or { host, port }; `username` and `password` are for ACLs.
export async function connect({ where, name, client, username = "default", password }) {
  const requests = `overbooked:sidecar:${name}:requests`;
  // A channel of this process's own: another one of this client must not hear our answers.
  const replyTo = `overbooked:sidecar:${name}:replies:${client}:${randomUUID()}`;
  const asked = new Map(); // request id → what to do with its answer
  const published = []; // who waits for the number that PUBLISH answers
  let lost;

  const fail = (error) => {
    lost = error;
    for (const { reject } of asked.values()) reject(error);
    for (const { reject } of published) reject(error);
  };
  let subscribed;
  const ready = new Promise((resolve, reject) => (subscribed = { resolve, reject }));
  const ears = wire(
    where,
    (reply) => {
      if (reply instanceof Error) subscribed.reject(reply);
      else if (reply[0] === "subscribe") subscribed.resolve();
      else if (reply[0] === "message") {
        const answer = JSON.parse(reply[2]);
        asked.get(answer.id)?.resolve(answer); // an answer may come twice: the first one counts
      }
    },
    (error) => (subscribed.reject(error), fail(error)),
  );
  const mouth = wire(
    where,
    (reply) => (reply instanceof Error ? published.shift()?.reject(reply) : published.shift()?.resolve(reply)),
    fail,
  );
  for (const side of password ? [ears, mouth] : []) side.send("AUTH", username, password);
  if (password) published.push({ resolve() {}, reject: subscribed.reject });
  ears.send("SUBSCRIBE", replyTo);
  await ready;

  function publish(message) {
    return new Promise((resolve, reject) => {
      if (lost) return reject(lost);
      published.push({ resolve, reject });
      return mouth.send("PUBLISH", requests, message);
    });
  }

  // The whole answer. It is asked for again, with the same id, until it comes or the deadline is over: that is safe,
  // for a request takes effect once.
  async function ask(op, fields = {}, { deadlineMs = 5000, againMs = 1500 } = {}) {
    const message = JSON.stringify({ id: randomUUID(), op, client, reply_to: replyTo, deadline_ms: deadlineMs, ...fields });
    const { id } = JSON.parse(message);
    let resend, overdue;
    try {
      return await new Promise((resolve, reject) => {
        asked.set(id, { resolve, reject });
        const send = () => publish(message).catch(reject);
        resend = setInterval(send, againMs);
        overdue = setTimeout(() => reject(new Error(`no answer to ${op} within ${deadlineMs} ms`)), deadlineMs);
        send().then((heard) => heard === 0 && reject(new Error(`no sidecar ${name} is there`)));
      });
    } finally {
      clearInterval(resend);
      clearTimeout(overdue);
      asked.delete(id);
    }
  }

  // What a successful answer holds; a refusal is thrown.
  async function request(op, fields, options) {
    const answer = await ask(op, fields, options);
    if (!answer.success) throw new SidecarError(answer.error);
    return answer;
  }

  return { ask, request, close: () => (ears.close(), mouth.close()) };
}
