// Tells how far a page was scrolled, at each quarter, once a page.

const mub = (window as any).mub;
let page = "";
let told = 0;

const look = () => {
  const root = document.documentElement;
  if (page != location.pathname + location.search) {
    page = location.pathname + location.search;
    told = 0;
  }
  const quarter = Math.floor(((scrollY + innerHeight) / root.scrollHeight) * 4) * 25;
  while (told < Math.min(quarter, 100)) mub.track("Page Scrolled", { percent: (told += 25) });
};

let waits = false;
addEventListener(
  "scroll",
  () => {
    if (waits) return;
    waits = true;
    setTimeout(() => {
      waits = false;
      look();
    }, 200);
  },
  { passive: true },
);
