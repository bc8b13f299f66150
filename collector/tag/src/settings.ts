// What the page says about the tag, in attributes of its script element.

const script = (document.currentScript || { dataset: {}, src: "" }) as HTMLScriptElement;
const data = script.dataset;

const list = (text?: string): string[] => (text || "").match(/[^\s,]+/g) || [];

export const writeKey = data.writeKey || "";
export const host = data.host || script.src.replace(/\/mub[^/]*$/, ""); // of the collector, and the path it is under
export const alias = data.alias; // a global that is the tag, too: "analytics"
export const auto = data.auto != "off"; // pages are tracked by themselves, also those that are shown without being loaded
export const denied = data.denied; // "drop": without consent there are no events at all
export const assumed = data.consent; // what holds for all purposes before the page says: "granted" or "denied"
export const gpc = data.gpc != "off" && (navigator as any).globalPrivacyControl;
export const dnt = data.dnt && (navigator as any).doNotTrack == 1;
export const domains = list(data.domains); // sites that share the visitor
export const masked = list((data.maskUrl || "token,access_token,password,email,phone") + ",_mub");
export const cookies = data.cookies; // the domain for which the collector, which is of it, sets the visitor's cookie
export const extras = list(data.extras);
