package profiles

import (
	"context"
	"time"
)

// SetChunks makes the transactions of builds smaller, so that few events have many.
func (s *Store) SetChunks(replay, span, sweep int) {
	s.chunks = chunks{replay: replay, span: int64(span), sweep: sweep}
}

// SettleErasures sees erasures through once.
func (s *Store) SettleErasures(ctx context.Context) error { return s.settleErasures(ctx, looks{}) }

// RenewTombstoneKeys seals the keys of tombstones anew.
func (s *Store) RenewTombstoneKeys(ctx context.Context) error { return s.renewTombstoneKeys(ctx) }

// FoldArrivals folds the numbers of old days.
func (s *Store) FoldArrivals(ctx context.Context, now time.Time) error {
	return s.foldArrivals(ctx, now)
}
