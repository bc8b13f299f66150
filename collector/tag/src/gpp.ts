// Takes the visitor's decision over from a consent platform that speaks IAB's Global Privacy Platform: its US sections say who
// opted out of sale, sharing or targeted advertising (1 opted out, 2 did not, 0 does not apply).

const mub = (window as any).mub;
const gpp = (window as any).__gpp;

const read = (data: any) => {
  const sections = (data && data.parsedSections) || {};
  let denied = false;
  let found = false;
  for (const name in sections) {
    for (const part of [].concat(sections[name]) as any[]) {
      for (const field of ["SaleOptOut", "SharingOptOut", "TargetedAdvertisingOptOut"]) {
        if (field in part) {
          found = true;
          denied = denied || part[field] == 1;
        }
      }
      if (part.Gpc) denied = found = true;
    }
  }
  const v = denied ? "denied" : "granted";
  // Not to opt out is no decision against Global Privacy Control.
  found && mub.consent(denied ? "update" : "default", { ad_user_data: v, ad_personalization: v });
};

gpp &&
  gpp("addEventListener", (e: any, ok: boolean) => {
    if (ok && e.pingData && (e.eventName == "sectionChange" || e.eventName == "listenerRegistered")) read(e.pingData);
  });
