package profiles

// SetChunks makes the transactions of builds smaller, so that few events have many.
func (s *Store) SetChunks(replay, span, sweep int) {
	s.chunks = chunks{replay: replay, span: int64(span), sweep: sweep}
}
