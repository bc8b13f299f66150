// Where the visitor came from.

import { attempt, here } from "./attempt";
import { adopt, anonymous } from "./identity";
import { clean, current, referrer } from "./page";
import { domains } from "./settings";
import { cookie, object, set } from "./storage";
import { allowed } from "./consent";

const clicks = /^((g|d|fb|tt|tw|y)clid|[gw]braid|msclkid|li_fat_id|ScCid|rdt_cid|epik|irclickid)$/;

let campaign: Record<string, string> | undefined;

const from = () => attempt(() => new URL(referrer).hostname);

// landed reads what is in the address of the page.
export const landed = () => {
  const query = here().searchParams;
  const told = object("a"); // {first, last: touches, ids: {gclid: [value, time]}}
  const ids = (told.ids = told.ids || {});
  const now = Date.now();
  let touched: any = (campaign = undefined);
  query.forEach((value, name) => {
    if (name.startsWith("utm_")) (campaign = campaign || {})[name == "utm_campaign" ? "name" : name.slice(4)] = value;
    if (clicks.test(name)) {
      ids[name] = [value, now];
      touched = name;
    }
  });
  for (const name in ids) if (now - ids[name][1] > 7776e6) delete ids[name]; // 90 days
  const host = from();
  if (campaign || touched || (host && host != location.hostname)) {
    told.last = { campaign, referrer: host, url: current, at: new Date() };
    told.first = told.first || told.last;
  }
  set("a", JSON.stringify(told));
};

// attribution is what an event tells of it.
export const attribution = () => {
  const { ids = {}, first, last } = object("a");
  const clickIds: Record<string, string> = {};
  const clickIdsAt: Record<string, number> = {};
  for (const name in ids) [clickIds[name], clickIdsAt[name]] = ids[name];
  ["fbp", "fbc", "ttp"].forEach((name) => {
    const value = cookie("_" + name);
    if (value) clickIds[name] = value;
  });
  return { campaign, clickIds, clickIdsAt, attribution: { first, last } };
};

const listed = (name = "") => domains.some((d) => ("." + name).endsWith("." + d));

// link returns a URL that takes the visitor along to another of our sites.
export const link = (to: string) => {
  const u = new URL(to, location.href);
  if (allowed() && listed(u.hostname) && u.hostname != location.hostname) {
    u.searchParams.set("_mub", anonymous() + "." + Date.now().toString(36));
  }
  return u.href;
};

// arrived takes over the visitor whom a page of our own sites has just sent. Anybody can make such a link, so it has to come
// from where one is made; and it comes without the token that proves the visitor.
export const arrived = () => {
  const u = here();
  const [id, at] = (u.searchParams.get("_mub") || "").split(".");
  if (!id) return;
  u.searchParams.delete("_mub");
  history.replaceState(history.state, "", u);
  if (Math.abs(Date.now() - parseInt(at, 36)) < 12e4 && /^\w{16,64}$/.test(id) && listed(from())) {
    adopt(id);
    set("t", "-");
  }
};
