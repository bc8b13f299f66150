package profiles

import "time"

// pace cuts work into chunks that each take about as long as they may, going by how long the last one took.
type pace struct {
	least, most int           // of a chunk: a transaction costs something by itself, which small ones would waste
	each        time.Duration // of the last chunk's time; 0: there was none
}

// next is how much a chunk that may take so long may have.
func (p *pace) next(allowed time.Duration) int {
	if p.each == 0 {
		return p.least
	}
	return min(max(int(allowed/p.each), p.least), p.most)
}

// took notes that a chunk of n took d. One that is small for want of more tells nothing.
func (p *pace) took(n int, d time.Duration) {
	if n >= p.least {
		p.each = max(d/time.Duration(n), 1)
	}
}
