import { jitsuAnalytics } from '@jitsu/js'
import { collect, writeKey } from './run.mjs'

// Jitsu's library wants a write key of two halves; the second is not looked at here.
const analytics = jitsuAnalytics({ host: collect, writeKey: writeKey + ':x', s2s: true, errorPolicy: 'rethrow' })

analytics.setAnonymousId('visitor')
await analytics.track('Product Viewed', { sku: 'A1', price: 9.99 })
await analytics.identify('ada', { email: 'ada@example.org', plan: 'pro' })
await analytics.page({ name: 'Pricing', path: '/pricing' })
await analytics.track('Order Completed', { order_id: '1042', revenue: 59.9, currency: 'EUR' })
await analytics.group('engines', { name: 'Analytical Engines' })
