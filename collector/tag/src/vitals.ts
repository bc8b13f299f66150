// Tells how fast the page was: Web Vitals, once a page, when it is left.

const mub = (window as any).mub;
const seen: Record<string, number> = {};

const observe = (type: string, each: (entry: any) => void, more?: object) => {
  try {
    new PerformanceObserver((list) => list.getEntries().forEach(each)).observe({ type, buffered: true, ...more } as any);
  } catch (_) {} // the browser does not know it
};

const [load] = performance.getEntriesByType("navigation") as any[];
if (load) seen.ttfb = load.responseStart;
observe("paint", (e) => e.name == "first-contentful-paint" && (seen.fcp = e.startTime));
observe("largest-contentful-paint", (e) => (seen.lcp = e.startTime));

// Shifts less than a second apart, and within five, are one; the largest counts.
let shift = 0;
let begin = 0;
let end = 0;
observe("layout-shift", (e) => {
  if (e.hadRecentInput) return;
  if (e.startTime - end > 1000 || e.startTime - begin > 5000) {
    shift = 0;
    begin = e.startTime;
  }
  end = e.startTime;
  shift += e.value;
  seen.cls = Math.max(seen.cls || 0, shift);
});
observe("event", (e) => e.interactionId && (seen.inp = Math.max(seen.inp || 0, e.duration)), { durationThreshold: 40 });

let told = false;
const tell = () => {
  if (told) return;
  told = true;
  for (const name in seen) seen[name] = Math.round(seen[name] * 1000) / 1000;
  mub.track("Web Vitals", seen);
};
// The tag hears of it first, since it listens on the same phase before, so what is told is sent at once.
addEventListener("visibilitychange", () => document.visibilityState == "hidden" && (tell(), mub.flush()), true);
addEventListener("pagehide", () => (tell(), mub.flush()), true);
