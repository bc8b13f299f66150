// What a page is told by the test: where to send to, and whom to ask for a crash of the server.
const query = new URLSearchParams(location.search)
export const collect = query.get('collect')
export const writeKey = query.get('key')
export const batching = query.has('batching')

// The server is killed when it has answered the next request and before the answer is received, and started again.
export async function crash() {
  await fetch('/crash', { method: 'POST' })
}

// What goes wrong on the page is said in the test.
const say = (...what) => fetch('/say', { method: 'POST', body: what.map(String).join(' ') })
addEventListener('error', (e) => say(e.message))
addEventListener('unhandledrejection', (e) => say(e.reason))
const error = console.error
console.error = (...what) => {
  say(...what)
  error(...what)
}
