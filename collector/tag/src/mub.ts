// The tag: what pages call, and what it does by itself.

import { arrived, attribution, landed, link } from "./attribution";
import { allowed, consent, optOut, out, signals } from "./consent";
import { anonymous, forget, random, session, adopt } from "./identity";
import { current, moved, page as shown } from "./page";
import { attempt } from "./attempt";
import { add, flush, leave, plan, retry, tick } from "./queue";
import { alias, auto, denied, dnt, domains, extras, host, writeKey } from "./settings";
import { get, remove, set } from "./storage";
import { number, resume, suspend } from "./stream";

type Args = any[] & { r?: (value: any) => void };
const w = window as any;
let properties: any = {};
let started: any;
let told = ""; // the address of the last page that was told

// follow notices that the page shows something else.
const follow = () => moved() && landed();

// emit makes an event and queues it.
const emit = async (type: string, event: any, args: any[], wait = 1500) => {
  const done = args.find((a) => typeof a == "function");
  const [given, o] = args.filter((a) => typeof a != "function");
  const options = o || {};
  if (dnt || out() || (denied == "drop" && !allowed())) return;
  follow();
  if (type == "page") told = current;
  const context = { page: shown(), ...attribution(), consent: signals(), ...session(), ...options.context };
  const body = { ...given };
  const at = tick();
  if (/^[ig]/.test(type)) event.traits = body;
  else event.properties = { ...properties, ...(type == "page" && context.page), ...body };
  event = {
    type,
    messageId: at.toString(36) + random(),
    timestamp: options.timestamp || new Date(at),
    anonymousId: anonymous(),
    userId: get("u") || undefined,
    groupId: get("g") || undefined,
    integrations: options.integrations,
    ...event,
    context,
  };
  if (m.beforeSend) event = attempt(() => m.beforeSend(event)); // if it fails: it may be there to take something out
  if (!event) return;
  event.context = { ...event.context, mub: number() };
  add(event, wait);
  done && attempt(() => done(event));
  return event;
};

// first takes the next argument if it can be a name or an id.
const first = (args: any[]) => (args[0] && /^[of]/.test(typeof args[0]) ? undefined : text(args.shift()));
const text = (v: any) => (v || v === 0 ? v + "" : undefined);

const page = (args: any[], type = "page", wait?: number) => {
  let category = typeof args[1] == "string" ? first(args) : undefined;
  return emit(type, { category, name: first(args) }, args, wait);
};

const api: Record<string, (...args: any[]) => any> = {
  track: (event, ...args) => emit("track", { event: text(event) }, args),
  page: (...args) => page(args),
  screen: (...args) => page(args, "screen"),
  identify: (...args) => {
    const id = first(args);
    if (id) {
      get("u") && get("u") != id && forget();
      set("u", id);
    }
    return emit("identify", {}, args);
  },
  group: (...args) => {
    const id = first(args);
    id && set("g", id);
    return emit("group", {}, args);
  },
  alias: (...args) => {
    const userId = first(args);
    return emit("alias", { userId, previousId: first(args) || get("u") || anonymous() }, [{}, ...args]);
  },
  reset: forget,
  consent,
  optOut,
  set: (more) => (properties = { ...properties, ...more }),
  flush,
  link,
  ready: (f) => f(m),
  segments: async () => {
    try {
      get("t") || (await flush());
      const token = get("t");
      if (token > "-") {
        const r = await fetch(host + "/v1/me?writeKey=" + writeKey + "&anonymousId=" + anonymous() + "&token=" + token, { credentials: "omit" });
        if (r.ok) return await r.json();
      }
    } catch (_) {}
    return { segments: [], traits: {} };
  },
  // Of Segment's, for code that is there already.
  user: () => ({ id: () => get("u") || null, anonymousId: anonymous }),
  setAnonymousId: adopt,
};

const m = (w.mub = w.mub || []);
const backlog: Args[] = m.splice(0);

const run = (call: Args): any => {
  if (!started) {
    return new Promise((r) => {
      call.r = r;
      backlog.push(call);
    });
  }
  return attempt(() => {
    const result = api[call[0]](...call.slice(1));
    call.r && call.r(result);
    return result;
  });
};

// guard keeps what goes wrong in the tag from the page.
const guard = (f: (e: any) => void) => (e?: any) => attempt(() => f(e));

const on = (name: string, f: (e: any) => void) => addEventListener(name, guard(f), true);

const acted = ({ type, target }: any) => {
  const el = target.closest("[data-mub-event]");
  if (el && (type == "submit") == (el.tagName == "FORM")) {
    const { mubEvent, ...data } = el.dataset;
    const given: Record<string, string> = {};
    for (const name in data) if (/^mub[A-Z]/.test(name)) given[name[3].toLowerCase() + name.slice(4)] = data[name];
    api.track(mubEvent, given);
  }
  const a = domains[0] && target.closest("a[href]");
  if (a) a.href = link(a.href);
};

const start = () => {
  started = 1;
  resume();
  const early = /^(con|opt|set)/;
  backlog.forEach((c) => early.test(c[0]) && run(c)); // before anything is written or made
  attempt(arrived);
  attempt(landed);
  backlog.forEach((c) => early.test(c[0]) || run(c));
  auto && page([], "page", 300);

  const changed = () => setTimeout(guard(() => (follow(), told != current && page([]))));
  if (auto) {
    (["pushState", "replaceState"] as const).forEach((name) => {
      const original = history[name];
      history[name] = (...args: any) => {
        original.apply(history, args);
        changed();
      };
    });
    on("popstate", changed); // of another fragment, too
  }
  on("click", acted);
  on("submit", acted);
  on("online", retry);
  on("visibilitychange", () => document.hidden && leave());
  on("pagehide", () => {
    leave();
    suspend(allowed());
  });
  on("pageshow", (e) => {
    e.persisted && auto && page([]);
  });
  plan(300); // what another page left
  extras.forEach((name) => {
    document.head.append(Object.assign(document.createElement("script"), { src: host + "/mub." + name + ".js" }));
  });
};

if (!m.version) {
  m.version = VERSION;
  for (const name in api) m[name] = (...args: any[]) => run([name, ...args]);
  m.push = run;
  if (alias) {
    attempt(() => backlog.push(...w[alias].splice(0)));
    w[alias] = m;
  }
  (document as any).prerendering ? document.addEventListener("prerenderingchange", start) : start();
}

declare const VERSION: string;
