// Tells that a form was sent: which one, and never what was typed into it.

const mub = (window as any).mub;

addEventListener(
  "submit",
  (e) => {
    const form = e.target as HTMLFormElement;
    if (Element.prototype.closest.call(form, "[data-mub-event]")) return; // it has an event of its own
    const text = (name: string) => Element.prototype.getAttribute.call(form, name) || undefined;
    mub.track("Form Submitted", { id: text("id"), name: text("name"), fields: form.elements.length });
  },
  true,
);
