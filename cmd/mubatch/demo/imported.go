package demo

import (
	"context"
	_ "embed"
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/cmd/mubatch/demo/oracle"
)

// OrdersMapping makes of the rows of [WriteOrders] what is sent of the sales.
//
//go:embed orders.yaml
var OrdersMapping []byte

// WriteOrders writes the sales as an export would have them: a row for each order or refund, in their order, with the times
// moved by shift. It returns how many rows there are, and how many events are made of them.
func WriteOrders(w io.Writer, sales io.Reader, shift time.Duration) (rows, events int, err error) {
	invoices, err := readInvoices(sales)
	if err != nil {
		return 0, 0, err
	}
	return writeOrders(w, makeEvents(invoices), shift)
}

func writeOrders(w io.Writer, all []event, shift time.Duration) (rows, events int, err error) {
	out := csv.NewWriter(w)
	header := []string{
		"invoice_no", "invoice_date", "customer_id", "guest", "country", "moved", "total", "stock_codes", "quantities", "prices",
	}
	if err := out.Write(header); err != nil {
		return 0, 0, err
	}
	moved := ""
	for _, e := range all {
		events++
		if e.identify { // is of the order that comes next
			moved = e.messageID[strings.LastIndexByte(e.messageID, '-')+1:]
			continue
		}
		var codes, quantities, prices []string
		for _, l := range e.invoice.lines {
			codes = append(codes, l.stockCode)
			quantities = append(quantities, strconv.FormatInt(l.quantity, 10))
			prices = append(prices, l.price)
		}
		user, guest := e.invoice.person()
		rows++
		if err := out.Write([]string{
			e.invoice.number, e.at.Add(shift).UTC().Format(timeFormat), user, guest, e.invoice.country, moved, e.invoice.total.String(),
			strings.Join(codes, "|"), strings.Join(quantities, "|"), strings.Join(prices, "|"),
		}); err != nil {
			return 0, 0, err
		}
		moved = ""
	}
	out.Flush()
	return rows, events, out.Error()
}

// Compared is what [CompareImport] ended with.
type Compared struct {
	Rows, Events int
	Profiles     int
	Replay, Took time.Duration // for the replay, and for the import, until all was applied
	Answers      []Answer      // those of the workspace of the import
}

// CompareImport replays the sales over HTTP into one workspace and has them imported into another one, by bring, which gets
// a secret key of it, the key of its source, and the orders as CSV. Then it compares the two, person by person and segment by
// segment, and the latter with SQL over the raw lines. The secret key needs the scope operator, and Check must be set. If
// something differs, the error wraps ErrDiffers.
func CompareImport(ctx context.Context, cfg Config, bring func(ctx context.Context, secretKey, source string, orders []byte, rows int) error) (c Compared, err error) {
	d := newDemo(cfg)
	defer d.http.CloseIdleConnections()
	events, err := d.read()
	if err != nil {
		return c, err
	}
	date := dates[len(dates)-1] // after all of them
	shift := time.Now().Truncate(time.Millisecond).Sub(date)
	run := strconv.FormatInt(time.Now().UnixMilli(), 36)
	workspace := func(name string) (*past, string, error) {
		in := *d.client
		key, write, err := d.createWorkspace(ctx, "shop-"+name+"-"+run)
		if err != nil {
			return nil, "", err
		}
		in.key = key
		p := &past{client: &in, date: date, shift: shift}
		list := make([]segment, len(questions))
		for i, q := range questions {
			list[i] = q.segment
		}
		if err := p.createSegments(ctx, list); err != nil {
			return nil, "", err
		}
		return p, write, p.createTraits(ctx, figures)
	}

	replayed, write, err := workspace("replayed")
	if err != nil {
		return c, err
	}
	began := time.Now()
	cfg = d.cfg
	cfg.WriteKey = write
	s := newSender(replayed.client, cfg, shift, newClock())
	if err := s.all(ctx, events, cfg.Workers); err != nil {
		return c, err
	}
	if err := replayed.untilApplied(ctx, s.acked.latest()); err != nil {
		return c, err
	}
	c.Replay = time.Since(began)

	imported, _, err := workspace("imported")
	if err != nil {
		return c, err
	}
	var orders strings.Builder
	if c.Rows, c.Events, err = writeOrders(&orders, events, shift); err != nil {
		return c, err
	}
	began = time.Now()
	if err := bring(ctx, imported.key, "shop", []byte(orders.String()), c.Rows); err != nil {
		return c, err
	}
	if err := imported.untilApplied(ctx, time.Now()); err != nil {
		return c, err
	}
	c.Took = time.Since(began)
	if c.Profiles, err = imported.mustEqual(ctx, replayed, c.Events); err != nil {
		return c, err
	}
	c.Answers, err = d.ask(ctx, imported)
	return c, err
}

// mustEqual compares everything that the API tells of the people of two workspaces, and returns how many there are. Time
// goes on meanwhile, by which computed values change: it looks again before it calls them different.
func (p *past) mustEqual(ctx context.Context, other *past, events int) (people int, err error) {
	var differs string
	for range 3 {
		var got, want map[string]string
		if want, err = other.people(ctx); err != nil {
			return 0, err
		}
		if got, err = p.people(ctx); err != nil {
			return 0, err
		}
		if differs = firstDifference(got, want); differs == "" {
			people = len(got)
			break
		}
	}
	if differs != "" {
		return 0, fmt.Errorf("%w: %s", ErrDiffers, differs)
	}
	for _, q := range questions {
		want, err := other.members(ctx, q.Key)
		if err != nil {
			return 0, err
		}
		got, err := p.members(ctx, q.Key)
		if err != nil {
			return 0, err
		}
		if w, g := slices.Sorted(maps.Values(want)), slices.Sorted(maps.Values(got)); !slices.Equal(w, g) {
			return 0, fmt.Errorf("%w: segment %s: %s", ErrDiffers, q.Key, difference(g, w))
		}
	}
	for name, in := range map[string]*past{"replay": other, "import": p} {
		s, err := in.stats(ctx)
		if err != nil {
			return 0, err
		}
		if c := s.Events; c.Applied != int64(events) || c.Failed != 0 || !c.AddsUp {
			return 0, fmt.Errorf("%w: the %s is counted as %+v, want %d applied", ErrDiffers, name, c, events)
		}
	}
	return people, nil
}

func firstDifference(got, want map[string]string) string {
	for _, who := range slices.Sorted(maps.Keys(want)) {
		if got[who] != want[who] {
			return fmt.Sprintf("%s is\n%s\nand should be\n%s", who, got[who], want[who])
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("there are %d people, and should be %d", len(got), len(want))
	}
	return ""
}

// people returns everybody by their identifiers, with what is known of them as JSON, in which nothing depends on the
// workspace.
func (p *past) people(ctx context.Context) (map[string]string, error) {
	type membership struct {
		Segment string `json:"segment_key"`
	}
	type profile struct {
		Identifiers jsontext.Value            `json:"identifiers"`
		FirstSeen   jsontext.Value            `json:"first_seen_at"`
		LastSeen    jsontext.Value            `json:"last_seen_at"`
		Traits      map[string]jsontext.Value `json:"traits"`
		Computed    map[string]jsontext.Value `json:"computed"`
		Consent     map[string]jsontext.Value `json:"consent"`
		Memberships []membership              `json:"memberships"`
	}
	all := map[string]string{}
	err := each(ctx, p.client, "/api/v1/profiles", func(one profile) error {
		slices.SortFunc(one.Memberships, func(a, b membership) int { return strings.Compare(a.Segment, b.Segment) })
		text, err := json.Marshal(one, json.Deterministic(true))
		all[string(one.Identifiers)] = string(text)
		return err
	})
	return all, err
}

// ask holds the answers of a workspace to SQL over the raw lines.
func (d *demo) ask(ctx context.Context, p *past) (answers []Answer, err error) {
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
	ask := func(key string, read func(*past, context.Context, string) ([]string, error)) error {
		got, want, err := p.answer(ctx, o, key, read)
		answers = append(answers, Answer{key, p.date, "before", len(got), len(want), slices.Equal(got, want)})
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%w: %s: %s", ErrDiffers, key, difference(got, want))
		}
		return err
	}
	for _, q := range questions {
		if err := ask(q.Key, (*past).readMembers); err != nil {
			return answers, err
		}
	}
	for _, f := range figures {
		if err := ask(f.Key, (*past).readValues); err != nil {
			return answers, err
		}
	}
	return answers, nil
}
