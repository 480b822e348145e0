// Package webhook tests the receivers of webhooks with processes of their own: they are
// killed around the COMMIT of an event and before its reply, lose connections to Postgres,
// and lose Postgres. There is nothing in it but tests.
//
// The test is the provider: it signs each event, and delivers it until it is answered
// with 200, and then once more. In the end it lets a relay and a worker have the events,
// and compares what the worker has written with what was sent. The table has no unique
// constraint, so that an event that is handled twice is there twice.
package webhook
