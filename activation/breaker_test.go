package activation

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b breaker
		for range breakerFailures {
			if !b.allow() {
				t.Fatal("the breaker opened too early")
			}
			b.fail()
		}
		for i, want := range []time.Duration{
			time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second,
			64 * time.Second, 128 * time.Second, 256 * time.Second, breakerLongest, breakerLongest,
		} {
			start := time.Now()
			if b.allow() || !b.open() {
				t.Fatalf("opening %d: it lets somebody through at once", i+1)
			}
			for !b.allow() {
				time.Sleep(10 * time.Millisecond)
			}
			if b.allow() {
				t.Errorf("opening %d: it lets two try", i+1)
			}
			if waited := time.Since(start); waited < want*79/100 || waited > want*121/100 {
				t.Errorf("opening %d: it waits %v, want %v give or take a fifth", i+1, waited, want)
			}
			b.fail()
		}
		time.Sleep(2 * breakerLongest)
		if !b.allow() || !b.succeed() {
			t.Error("a success does not say that it healed the destination")
		}
		for range 2 {
			if !b.allow() {
				t.Error("it is not closed after a success")
			}
		}
		if b.succeed() || b.open() {
			t.Error("it does not know that it is closed")
		}
	})
}
