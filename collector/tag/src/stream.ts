// The numbers of events, by which the server sees what it never got. They are counted within a stream: what one tab makes
// in one day, however many pages it loads. The page that is shown takes the stream out of the tab's storage and the page that
// goes puts it back, so that the copy a duplicated tab gets of that storage never has one in it. A page that comes back from the
// browser's cache begins another, because the one that it follows may not have gone yet.

import { random } from "./identity";
import { attempt } from "./attempt";

let stream = "";
let count: any = 0;

export const restart = () => (stream = "");

export const resume = () => {
  attempt(() => {
    const found = sessionStorage.mub_n;
    delete sessionStorage.mub_n;
    [stream, count] = found.split(".");
  });
};

export const suspend = (kept: boolean) => {
  attempt(() => stream && kept && (sessionStorage.mub_n = stream + "." + count));
  restart();
};

// number returns the next number. The day is in front of the name of its stream, in base 36.
export const number = () => {
  const day = ((Date.now() / 864e5) | 0).toString(36);
  if (!stream || !stream.startsWith(day)) {
    stream = day + random().slice(0, 12);
    count = 0;
  }
  return { s: stream, n: ++count };
};
