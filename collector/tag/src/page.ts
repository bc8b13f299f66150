// Which page is shown, without what must not leave it.

import { attempt } from "./attempt";
import { masked } from "./settings";

// clean takes out of a URL the parameters that are masked, and its fragment unless that is a route.
export const clean = (url: string) =>
  attempt(() => {
    const u = new URL(url);
    masked.forEach((name) => u.searchParams.delete(name));
    if (!/^#[!\/]/.test(u.hash)) u.hash = "";
    return u.href;
  }) || "";

export let current = clean(location.href);
export let referrer = clean(document.referrer);

// moved tells whether another page is shown than before, which is then what referred to it.
export const moved = () => {
  const next = clean(location.href);
  return next != current && ((referrer = current), (current = next));
};

export const page = () => {
  const u = new URL(current);
  return { url: current, path: u.pathname, search: u.search, referrer, title: document.title };
};
