// What is pasted into pages: it takes calls until the tag is there.

((w: any, d: Document, m: any, s?: any) => {
  if (!m.track) {
    w.mub = m;
    "track page screen identify group alias reset consent set optOut flush ready link segments".split(" ").forEach(
      (f) =>
        (m[f] = (...a: any[]) =>
          new Promise((r) => {
            const c: any = [f, ...a];
            c.r = r;
            m.push(c);
          })),
    );
    s = d.createElement("script");
    s.async = 1;
    s.src = "SRC";
    s.integrity = "SRI";
    s.crossOrigin = "";
    s.dataset.writeKey = "KEY";
    s.nonce = (d.currentScript as any).nonce;
    d.head.append(s);
  }
})(window, document, (window as any).mub || []);
