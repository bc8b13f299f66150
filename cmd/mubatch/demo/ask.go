package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/mubatch/mubatch/cmd/mubatch/demo/oracle"
)

// dates are those as of which the questions are asked, by the shop's clock. The first two are noons of working days, at which
// windows open and close every few minutes. At the last one the file ends.
var dates = []time.Time{
	time.Date(2011, 3, 31, 12, 0, 0, 0, time.UTC),
	time.Date(2011, 8, 31, 12, 0, 0, 0, time.UTC),
	time.Date(2011, 12, 9, 12, 50, 0, 0, time.UTC),
}

// turns are when a segment or a computed trait may be made: so that what it says comes of the events as they arrive, of the
// archive and those that arrive meanwhile, or of the archive.
var turns = []string{"before", "during", "after"} // the replay

// Answer is what a segment or a computed trait says to a question as of a date, and what SQL says.
type Answer struct {
	Question string // the key of the segment or the trait
	Date     time.Time
	Made     string // before, during or after the replay
	People   int    // the segment's members, or those of whom the trait has a value
	SQL      int
	Equal    bool // they are the same people, with the same values
}

// Ask asks questions of the shop's sales as of three dates, by segments, computed traits and SQL over the raw lines, and
// writes what comes of it. Because segments tell what is true now, it replays for each date what had been sold by then, with
// the times moved so that the date is now, into a workspace that it makes for that: the secret key needs the scope operator,
// and Check must be set. If an answer is not what SQL says, the error wraps ErrDiffers.
func Ask(ctx context.Context, cfg Config) ([]Answer, error) {
	d := newDemo(cfg)
	defer d.http.CloseIdleConnections()
	events, err := d.read()
	if err != nil {
		return nil, err
	}
	for _, q := range questions {
		d.say("  %-16s  %s", q.Key, q.Description)
	}
	run := strconv.FormatInt(time.Now().UnixMilli(), 36)
	all := make([]*past, len(dates))
	g, replaying := errgroup.WithContext(ctx)
	for i, date := range dates {
		g.Go(func() error {
			key := fmt.Sprintf("shop-%s-%s", date.Format("20060102"), run)
			p, err := d.relive(replaying, key, date, i, events)
			if err != nil {
				return fmt.Errorf("as of %s: %w", date.Format(time.DateOnly), err)
			}
			all[i] = p
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return d.compare(ctx, all)
}

// past is a workspace in which a date of the past is now.
type past struct {
	*client
	date  time.Time
	shift time.Duration // how much later than in the sales everything happened
	made  map[string]string
}

// relive makes a workspace in which the date is now, with a segment for each question, all computed traits and all events up
// to the date.
// turn is how far the questions' turns have moved on.
func (d *demo) relive(ctx context.Context, key string, date time.Time, turn int, events []event) (*past, error) {
	cfg := d.cfg
	in := *d.client
	var err error
	if in.key, cfg.WriteKey, err = d.createWorkspace(ctx, key); err != nil {
		return nil, err
	}
	p := &past{client: &in, date: date, made: map[string]string{}}
	segments, traits := make([][]segment, len(turns)), make([][]figure, len(turns))
	for _, q := range questions {
		t := (q.turn + turn) % len(turns)
		segments[t] = append(segments[t], q.segment)
		p.made[q.Key] = turns[t]
	}
	for _, f := range figures {
		t := (f.turn + turn) % len(turns)
		traits[t] = append(traits[t], f)
		p.made[f.Key] = turns[t]
	}
	define := func(ctx context.Context, turn int) error {
		return errors.Join(p.createSegments(ctx, segments[turn]), p.createTraits(ctx, traits[turn]))
	}
	events = events[:sort.Search(len(events), func(i int) bool { return events[i].at.After(date) })]

	if err := define(ctx, 0); err != nil {
		return nil, err
	}
	began := time.Now()
	p.shift = began.Truncate(time.Millisecond).Sub(date)
	s := newSender(p.client, cfg, p.shift, newClock())
	half := len(events) / 2
	if err := s.all(ctx, events[:half], cfg.Workers); err != nil {
		return nil, err
	}
	g, both := errgroup.WithContext(ctx)
	g.Go(func() error { return define(both, 1) })
	g.Go(func() error { return s.all(both, events[half:], cfg.Workers) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := p.untilApplied(ctx, s.acked.latest()); err != nil {
		return nil, err
	}
	took := time.Since(began)
	if err := define(ctx, 2); err != nil {
		return nil, err
	}
	d.say("  as of %s: %s events applied in %s, in the workspace %s", date.Format(time.DateOnly), thousands(len(events)), short(took), key)
	return p, nil
}

// createWorkspace makes a workspace with a source, and returns the keys of both.
func (c *client) createWorkspace(ctx context.Context, key string) (secret, write string, err error) {
	var made struct {
		Key struct {
			Secret string `json:"secret"`
		} `json:"key"`
	}
	body := map[string]string{"key": key, "name": "The shop's past"}
	if err := c.do(ctx, http.MethodPost, "/api/v1/workspaces", body, &made); err != nil {
		return "", "", fmt.Errorf("make the workspace %s: %w", key, err)
	}
	in := *c
	in.key = made.Key.Secret
	if err := in.do(ctx, http.MethodPost, "/api/v1/sources", map[string]string{"key": "shop"}, nil); err != nil {
		return "", "", fmt.Errorf("make the source: %w", err)
	}
	var writes struct {
		Key string `json:"key"`
	}
	if err := in.do(ctx, http.MethodPost, "/api/v1/sources/shop/write_keys", nil, &writes); err != nil {
		return "", "", fmt.Errorf("make the write key: %w", err)
	}
	return in.key, writes.Key, nil
}

// compare has every question answered as of every date.
func (d *demo) compare(ctx context.Context, all []*past) ([]Answer, error) {
	file, err := Open(d.cfg.File)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	o, err := oracle.Open(ctx, d.cfg.Check, file)
	if err != nil {
		return nil, fmt.Errorf("ask SQL: %w", err)
	}
	defer o.Close()

	var answers []Answer
	var wrong []string
	ask := func(key string, read func(*past, context.Context, string) ([]string, error)) error {
		for _, p := range all {
			got, want, err := p.answer(ctx, o, key, read)
			if err != nil {
				return err
			}
			a := Answer{key, p.date, p.made[key], len(got), len(want), slices.Equal(got, want)}
			answers = append(answers, a)
			if !a.Equal {
				wrong = append(wrong, fmt.Sprintf("%s as of %s, made %s the replay: %d people, want %d; %s",
					key, p.date.Format(time.DateOnly), a.Made, a.People, a.SQL, difference(got, want)))
			}
		}
		return nil
	}
	for _, q := range questions {
		if err := ask(q.Key, (*past).readMembers); err != nil {
			return nil, err
		}
	}
	for _, f := range figures {
		if err := ask(f.Key, (*past).readValues); err != nil {
			return nil, err
		}
	}
	d.say("%s", answersTable(answers))
	if len(wrong) > 0 {
		return answers, fmt.Errorf("%w:\n%s", ErrDiffers, strings.Join(wrong, "\n"))
	}
	return answers, nil
}

// readMembers returns the members of a segment.
func (p *past) readMembers(ctx context.Context, key string) ([]string, error) {
	members, err := p.members(ctx, key)
	return slices.Sorted(maps.Values(members)), err
}

// readValues returns everybody of whom a computed trait has a value, each with the value.
func (p *past) readValues(ctx context.Context, key string) ([]string, error) {
	type profile struct {
		Identifiers []identifier              `json:"identifiers"`
		Computed    map[string]jsontext.Value `json:"computed"`
	}
	var all []string
	err := each(ctx, p.client, "/api/v1/profiles", func(one profile) error {
		v, ok := one.Computed[key]
		switch {
		case !ok || len(one.Identifiers) != 1:
			return fmt.Errorf("a profile with the identifiers %v has the computed traits %v", one.Identifiers, one.Computed)
		case v.Kind() == 'n':
			return nil
		}
		text := strings.Trim(string(v), `"`)
		if n, ok := new(big.Rat).SetString(text); v.Kind() == '0' && ok {
			text = n.FloatString(15)
		} else if at, err := time.Parse(time.RFC3339, text); err == nil {
			text = at.Format(timeFormat)
		}
		id := one.Identifiers[0]
		all = append(all, fmt.Sprintf("%s:%s %s", id.Kind, id.Value, text))
		return nil
	})
	slices.Sort(all)
	return all, err
}

// settled is how long ago the answer must have changed last for ours to be held to it. A change by itself is due within
// a second.
const settled = 10 * time.Second

// answer returns our answer to a question, which read reads, and that of SQL. Time goes on meanwhile, by which answers
// change: SQL is asked for some time before we are and again after it, until it gives the same answer twice.
func (p *past) answer(ctx context.Context, o *oracle.Oracle, question string,
	read func(*past, context.Context, string) ([]string, error),
) (got, want []string, err error) {
	err = p.until(ctx, func() (string, error) {
		from := time.Now().Add(-settled)
		if began := p.date.Add(p.shift); from.Before(began) {
			from = began
		}
		if got, err = read(p, ctx, question); err != nil {
			return "", err
		}
		earlier, err := o.Answer(ctx, question, p.date, p.shift, from)
		if err != nil {
			return "", err
		}
		if want, err = o.Answer(ctx, question, p.date, p.shift, time.Now()); err != nil {
			return "", err
		}
		if !slices.Equal(earlier, want) {
			return fmt.Sprintf("%s as of %s is about to change", question, p.date.Format(time.DateOnly)), nil
		}
		return "", nil
	})
	return got, want, err
}

// answersTable has a line for each question and a column for each date.
func answersTable(answers []Answer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n  %-16s", "as of")
	for _, date := range dates {
		fmt.Fprintf(&b, "  %-22s", date.Format("2006-01-02 15:04"))
	}
	b.WriteString("\n")
	for i, a := range answers {
		if i%len(dates) == 0 {
			fmt.Fprintf(&b, "  %-16s", a.Question)
		}
		sign := "="
		if !a.Equal {
			sign = "≠"
		}
		fmt.Fprintf(&b, "  %6s %s %6s %-6s", thousands(a.People), sign, thousands(a.SQL), a.Made)
		if (i+1)%len(dates) == 0 {
			b.WriteString("\n")
		}
	}
	b.WriteString("\n  People whom the segment or the computed trait has = those that SQL has; it was made before, during or after the replay.\n")
	return b.String()
}
