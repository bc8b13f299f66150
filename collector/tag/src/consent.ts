// What the visitor allows, in the four signals of Google's consent mode and any others the page has.

import { assumed, gpc } from "./settings";
import { get, keep, object, remove, set } from "./storage";

type Signals = Record<string, string>;

const all = assumed ? { ad_storage: assumed, ad_user_data: assumed, ad_personalization: assumed, analytics_storage: assumed } : {};
const sale = gpc ? { ad_user_data: "denied", ad_personalization: "denied" } : {};
const decided: Signals = object("c");

// signals are what holds: what the visitor decided, else what Global Privacy Control asks for, else what the page assumes.
export const signals = (): Signals => ({ ...all, ...sale, ...decided });

export const allowed = () => signals().analytics_storage != "denied";

export const consent = (kind: string, given: Signals) => {
  Object.assign(kind == "update" ? decided : all, given);
  keep(allowed());
  allowed() && set("c", JSON.stringify(decided));
};

keep(allowed());

export const out = () => get("o");
export const optOut = (on?: boolean) => (on === false ? remove("o") : set("o", "-"));
