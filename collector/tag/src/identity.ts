// Who the visitor is, and in which session.

import { cookie, get, remove, set, setCookie } from "./storage";
import { restart } from "./stream";

// random returns at least 100 bits as text.
export const random = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");

// anonymous returns the visitor's id. A cookie is of the whole site, so it goes before this host's own copy.
export const anonymous = () => {
  const id = cookie("mub_id") || get("id") || random();
  adopt(id);
  return id;
};

// adopt makes an id the visitor's.
export const adopt = (id: string) => {
  if (id != get("id")) {
    remove("t"); // a token is of one id
    set("id", id);
  }
  id != cookie("mub_id") && setCookie("mub_id", id);
};

// forget makes a new visitor of whoever comes next.
export const forget = () => {
  ["u", "g", "s"].forEach(remove);
  restart();
  adopt(random());
};

// session notes that something happened now. A session ends after 30 minutes in which nothing did.
export const session = () => {
  const now = Date.now();
  let [start, last]: any = get("s").split(".");
  const first = !(now - last < 18e5);
  if (first) start = now;
  set("s", start + "." + now);
  return { sessionId: +start, sessionStart: first };
};
