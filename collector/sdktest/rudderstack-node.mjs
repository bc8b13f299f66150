import RudderAnalytics from '@rudderstack/rudder-sdk-node'
import { collect, crash, writeKey } from './run.mjs'

const analytics = new RudderAnalytics(writeKey, { dataPlaneUrl: collect, retryCount: 8 })
const flush = () => new Promise((resolve, reject) => analytics.flush((err) => (err ? reject(err) : resolve())))

analytics.track({ anonymousId: 'visitor', event: 'Product Viewed', properties: { sku: 'A1', price: 9.99 } })
analytics.identify({ anonymousId: 'visitor', userId: 'ada', traits: { email: 'ada@example.org', plan: 'pro' } })
analytics.page({ userId: 'ada', name: 'Pricing' })
await flush()

await crash()
analytics.track({ userId: 'ada', event: 'Order Completed', properties: { order_id: '1042', revenue: 59.9, currency: 'EUR' } })
analytics.screen({ userId: 'ada', name: 'Main' })
analytics.group({ userId: 'ada', groupId: 'engines', traits: { name: 'Analytical Engines' } })
analytics.alias({ userId: 'ada', previousId: 'ada-of-old' })
await flush()
