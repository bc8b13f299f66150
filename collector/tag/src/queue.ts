// What waits to be sent: an entry of its own for each event, in the order of their ids, so that tabs can share the queue
// without overwriting what the others put there. An event stays until the server has it or refuses it for good.

import { attempt } from "./attempt";
import { host, writeKey } from "./settings";
import { get, keys, object, remove, served, set } from "./storage";

const url = host + "/v1/b?writeKey=" + writeKey;

let last = 0; // what tick returned
let tries = 0; // that failed, since one did not
let notBefore = 0;
let due = 0; // when the timer ends
let timer: any;
let running: any;

// tick returns the time, never the same twice: what a page does in one millisecond has an order, too.
export const tick = () => (last = Math.max(last + 1, Date.now()));

export const add = (event: any, wait: number) => {
  attempt(() => set("q" + event.messageId, JSON.stringify(event))); // not what has no end
  const waiting = keys("q");
  waiting.slice(0, -100).forEach(remove); // the oldest
  plan(waiting.length < 10 ? wait : 0);
};

// plan sends in that many milliseconds, or when it is to be sent anyway, but not before the server wants it.
export const plan = (wait: number) => {
  const at = Math.max(Date.now() + wait, notBefore);
  if (!timer || at < due) {
    clearTimeout(timer);
    due = at;
    timer = setTimeout(flush, at - Date.now());
  }
};

// take returns the keys of what goes into the next request, and its body: some 18,000 characters, of up to 3 bytes, because
// browsers allow 64 KiB to requests that outlive their page.
const take = (): [string[], string] => {
  let length = 0;
  const chosen = keys("q").filter((key, i) => (length += get(key).length) < 18e3 || !i);
  // No more of the browser than it says with every request: nobody is told from others by it.
  const context = { library: { name: "mub.js", version: VERSION }, userAgent: navigator.userAgent, locale: navigator.language };
  return [chosen, JSON.stringify({ batch: chosen.map(object), writeKey, sentAt: new Date(), retry: tries, context })];
};

const send = async () => {
  for (;;) {
    const [chosen, body] = take();
    if (!chosen[0]) return (running = 0); // at once: what comes next is not waited for
    let pause = 0;
    try {
      const cookie = served();
      const asks = !get("t"); // what proves the visitor is told once
      const r = await fetch(url + cookie + (asks ? "&visitor=1" : ""), {
        method: "POST",
        body,
        keepalive: body.length < 2e4,
        credentials: cookie ? "include" : "omit",
        signal: attempt(() => AbortSignal.timeout(2e4)),
      });
      if (!/408|429|5../.test(r.status as any)) {
        chosen.forEach(remove);
        notBefore = tries = 0;
        if (asks && r.ok) {
          const { visitor } = await r.json();
          set("t", visitor && visitor.anonymousId == get("id") ? visitor.token : "-");
        }
        continue;
      }
      pause = +r.headers.get("Retry-After")! * 1e3 || 0;
    } catch (_) {}
    notBefore = Date.now() + Math.max(pause, Math.min(3e5, 1e3 * 2 ** tries++) * (1 + Math.random()) / 2);
    running = 0;
    return plan(0);
  }
};

// flush sends all that waits, and returns when that was tried.
export const flush = async () => {
  clearTimeout(timer);
  timer = 0;
  if (Date.now() < notBefore) return plan(0);
  // One tab at a time; where there are no locks the server knows copies by their ids.
  return (running = running || new Promise((done) => done((navigator as any).locks.request("mub", send))).catch(send));
};

// retry forgets that sending failed, because the reason for it has passed.
export const retry = () => {
  notBefore = tries = 0;
  return flush();
};

// leave hands what waits to the browser, which sends it also when the page is gone, but does not tell whether that went
// well. Without a network it says yes and may lose it. After a failure it is kept, too: the next page sends it again, and the server knows the copies.
export const leave = () => {
  for (;;) {
    const [chosen, body] = take();
    if (!(chosen[0] && navigator.onLine && navigator.sendBeacon(url, body)) || tries) return;
    chosen.forEach(remove);
  }
};

declare const VERSION: string;
