// What is kept in the browser, or in memory where that is not allowed or not possible. Nothing here throws.

import { attempt } from "./attempt";
import { cookies } from "./settings";

const prefix = "mub_";
const memory: Record<string, string> = {};
let kept = true; // the browser may be written to; it always may hold "o", or an opt-out would be forgotten

export const get = (key: string): string => memory[(key = prefix + key)] || ((kept || key == "mub_o") && attempt(() => localStorage[key])) || "";

export const set = (key: string, value: string) => {
  memory[(key = prefix + key)] = value;
  (kept || key == "mub_o") &&
    attempt(() => {
      localStorage[key] = value;
      delete memory[key];
    });
};

export const remove = (key: string) => {
  delete memory[(key = prefix + key)];
  attempt(() => delete localStorage[key]);
};

// keys returns those that begin like that, in order.
export const keys = (start: string) =>
  Object.keys(memory)
    .concat((kept && attempt(() => Object.keys(localStorage))) || [])
    .filter((k) => k.startsWith(prefix + start))
    .map((k) => k.slice(4))
    .sort();

export const object = (key: string): any => attempt(() => JSON.parse(get(key))) || {};

export const cookie = (name: string) => (kept && attempt(() => document.cookie.match("(^|; )" + name + "=([^;]*)")![2])) || "";

// site is the domain that all hosts of the site share, found by trying: "" is this host alone.
let site: string | undefined;
const domain = () => {
  if (site == null) {
    const labels = location.hostname.split(".");
    let d = labels.pop()!;
    site = "";
    while (!site && labels[0]) {
      d = labels.pop() + "." + d;
      write("mub_t", "1", 9, d);
      if (cookie("mub_t")) site = d;
      write("mub_t", "", 0, d);
    }
  }
  return site;
};

const write = (name: string, value: string, age: number, on: string) =>
  attempt(
    () =>
      (document.cookie = name + "=" + value + ";path=/;samesite=lax;max-age=" + age + (on && ";domain=" + on) + (location.protocol[4] == "s" ? ";secure" : "")),
  );

export const setCookie = (name: string, value: string) => {
  kept && write(name, value, 3456e4, domain()); // 400 days: browsers keep no cookie longer
};

// served asks a collector of this site to set the cookie itself: then browsers keep it as long as it says.
export const served = () => (kept && cookies ? "&cookie=" + get("id") + "&domain=" + cookies : "");

// keep allows or forbids to write to the browser. What was written is taken back into memory or forgotten, but for what
// waits to be sent, which was allowed when it happened, and for an opt-out.
export const keep = (allowed: boolean) => {
  if (allowed == kept) return;
  const all = keys("");
  const values = all.map(get);
  if (kept) {
    all.forEach(remove);
    cookie("mub_id") && write("mub_id", "", 0, domain());
    attempt(() => delete sessionStorage.mub_n);
  }
  kept = allowed;
  all.forEach((k, i) => (allowed || /^[qo]/.test(k)) && set(k, values[i]));
};
