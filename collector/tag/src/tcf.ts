// Takes the visitor's decision over from a consent platform that speaks IAB Europe's Transparency and Consent Framework:
// Consent Management Platform API v2, addEventListener.

const mub = (window as any).mub;
const tcf = (window as any).__tcfapi;

tcf &&
  tcf("addEventListener", 2, (data: any, ok: boolean) => {
    if (!ok || (data.eventStatus != "tcloaded" && data.eventStatus != "useractioncomplete")) return;
    const purposes = (data.purpose && data.purpose.consents) || {};
    // Purpose 1 is storage, 3 and 4 are profiles for ads and ads by profile, 8 is measuring content.
    const given = (...all: number[]) => (data.gdprApplies === false || all.every((p) => purposes[p]) ? "granted" : "denied");
    // Where nobody has to be asked nobody has decided: Global Privacy Control still holds.
    mub.consent(data.gdprApplies === false ? "default" : "update", {
      ad_storage: given(1),
      ad_user_data: given(1, 7),
      ad_personalization: given(3, 4),
      analytics_storage: given(1, 8),
    });
  });
