// attempt returns what f does, or nothing if it cannot be done: what goes wrong in the tag stays in it.
export const attempt = <T>(f: () => T): T | undefined => {
  try {
    return f();
  } catch (_) {}
};

export const here = () => new URL(location.href);
