package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen is where the demo writes. On a terminal the last line shows how far it is; elsewhere that is a line now and then.
type screen struct {
	out      io.Writer
	terminal bool

	mu     sync.Mutex
	bar    string // shown at present
	shown  time.Time
	behind int // what was told of the progress last, in tenths
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if file, ok := out.(*os.File); ok {
		info, err := file.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return s
}

const clearLine = "\r\x1b[K"

// say writes lines above the bar.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if s.bar != "" {
		text = clearLine + text
	}
	fmt.Fprint(s.out, text, "\n", s.bar)
}

// progress shows that done of total is done.
func (s *screen) progress(done, total int, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		if tenths := 10 * done / max(total, 1); tenths > s.behind && time.Since(s.shown) > time.Second {
			s.behind, s.shown = tenths, time.Now()
			fmt.Fprintf(s.out, "  %d of %d %s\n", done, total, what)
		}
		return
	}
	const width = 30
	full := width * done / max(total, 1)
	s.bar = fmt.Sprintf("%s  %s%s %d of %d %s", clearLine, strings.Repeat("█", full), strings.Repeat("░", width-full), done, total, what)
	fmt.Fprint(s.out, s.bar)
}

// finish takes the bar away.
func (s *screen) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar != "" {
		fmt.Fprint(s.out, clearLine)
	}
	s.bar, s.behind = "", 0
}
