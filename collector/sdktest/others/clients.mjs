// Says the same with the official libraries of several products, as they are, each pointed at us with the write key in the
// place of its project's key. Exits with 0 if none of them saw an error.
import { PostHog } from 'posthog-node'
import { newTracker, buildPageView, buildStructEvent, buildSelfDescribingEvent } from '@snowplow/node-tracker'
import umami from '@umami/node'
import MatomoTracker from 'matomo-tracker'

const { COLLECT: collect, WRITE_KEY: key } = process.env
const { Umami } = umami

const posthog = new PostHog(key, { host: collect, flushAt: 20, flushInterval: 50 })
posthog.on('error', (err) => { throw err })
posthog.capture({ distinctId: 'ada', event: 'posthog order', properties: { order_id: '1042', revenue: 59.9, $set: { plan: 'pro' } } })
posthog.identify({ distinctId: 'ada', properties: { email: 'ada@example.org' } })
posthog.alias({ distinctId: 'ada', alias: 'ada-of-old' })
posthog.groupIdentify({ groupType: 'company', groupKey: 'engines', properties: { name: 'Analytical Engines' }, distinctId: 'ada' })
await posthog.shutdown()

await new Promise((resolve, reject) => {
  const snowplow = newTracker(
    { namespace: 'shop', appId: key, encodeBase64: true },
    { endpoint: collect, bufferSize: 3, onRequestSuccess: () => resolve(), onRequestFailure: (failure) => reject(new Error(failure.message)) },
  )
  snowplow.setUserId('ada')
  snowplow.track(buildPageView({ pageUrl: 'https://shop.example/p/41', pageTitle: 'Lamp' }))
  snowplow.track(buildStructEvent({ category: 'shop', action: 'snowplow struct', value: 2 }))
  snowplow.track(buildSelfDescribingEvent({ event: { schema: 'iglu:com.acme/snowplow_described/jsonschema/1-0-0', data: { plan: 'pro' } } }))
})

const site = new Umami({ websiteId: key, hostUrl: collect })
const sent = await site.track('umami order', { revenue: 59.9 })
const told = await sent.json()
if (!sent.ok || !told.cache || !told.sessionId || !told.visitId) throw new Error(`umami: ${sent.status} ${JSON.stringify(told)}`)

const matomo = new MatomoTracker(key, collect + '/matomo.php')
matomo.on('error', (err) => { throw new Error(`matomo: ${err}`) })
matomo.track({ url: 'https://shop.example/p/41', action_name: 'Lamp', uid: 'ada', rand: '1' })
const bulk = await new Promise((resolve) => matomo.trackBulk([
  { url: 'https://shop.example/', uid: 'ada', e_c: 'shop', e_a: 'matomo event', rand: '2' },
  { url: 'https://shop.example/thanks', uid: 'ada', idgoal: 0, ec_id: '1042', revenue: 59.9, rand: '3' },
], resolve))
if (JSON.parse(bulk).tracked !== 2) throw new Error(`matomo: ${bulk}`)

// matomo-tracker leaves answers to GET unread, which keeps Node from ending by itself.
process.exit(0)
