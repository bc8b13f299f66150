// What a script in Node is told by the test: where to send to, and whom to ask for a crash of the server.
export const { COLLECT: collect, WRITE_KEY: writeKey } = process.env

// The server is killed when it has answered the next request and before the answer is received, and started again.
export async function crash() {
  await fetch(process.env.PAGES + '/crash', { method: 'POST' })
}
