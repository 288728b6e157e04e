// Prints what happens to slots, a JSON object a line, and goes on where it was after any break. Node 18 or newer.
//   node events.mjs http://127.0.0.1:8080 pk_… [since]

const [url, key, since = ""] = process.argv.slice(2);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** The events from `since` on, or from now on. Yields {type, id, data}; `missed` says that some are not kept any more. */
export async function* events(url, key, since = "") {
  let [last, retry] = [since, 2000];
  for (;;) {
    try {
      const headers = { Authorization: `Bearer ${key}`, ...(last && { "Last-Event-ID": last }) };
      const answer = await fetch(`${url}/events`, { headers });
      if (answer.status >= 400 && answer.status < 500 && answer.status !== 429)
        throw Object.assign(new Error((await answer.json()).error.message), { final: true });
      let text = "";
      for await (const piece of answer.ok ? answer.body.pipeThrough(new TextDecoderStream()) : []) {
        const blocks = (text + piece).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(
            block.split("\n").map((line) => [line.split(":", 1)[0], line.slice(line.indexOf(":") + 1).replace(/^ /, "")]),
          );
          retry = Number(fields.retry ?? retry);
          last = fields.id ?? last;
          if (fields.data) yield { type: fields.event, id: last, data: JSON.parse(fields.data) };
        }
      }
    } catch (error) {
      if (error.final) throw error;
    }
    await pause(retry);
  }
}

for await (const event of events(url, key, since)) console.log(JSON.stringify(event));
