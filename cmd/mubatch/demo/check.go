package demo

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/mubatch/mubatch/cmd/mubatch/demo/oracle"
)

// check compares the end with what package oracle says, and returns an error that wraps ErrDiffers for what is not equal.
func (d *demo) check(ctx context.Context) error {
	began := time.Now()
	file, err := Open(d.cfg.File)
	if err != nil {
		return err
	}
	defer file.Close()
	o, err := oracle.Open(ctx, d.cfg.Check, file)
	if err != nil {
		return fmt.Errorf("ask SQL: %w", err)
	}
	defer o.Close()
	totals, err := o.Totals(ctx)
	if err != nil {
		return err
	}
	d.say("  check: SQL over the sales says %s customers, %s guests, %s orders, %s refunds, revenue %s",
		thousands(totals.Customers), thousands(totals.Guests), thousands(totals.Orders), thousands(totals.Refunds), totals.Revenue)

	var wrong []string
	if want := int64(totals.Customers + totals.Guests + max(0, min(d.cfg.Live, livePeople))); d.result.Profiles != want {
		wrong = append(wrong, fmt.Sprintf("%d profiles, want %d", d.result.Profiles, want))
	}
	accounts, err := o.Accounts(ctx)
	if err != nil {
		return err
	}
	differ, err := d.checkAccounts(ctx, accounts)
	if err != nil {
		return err
	}
	wrong = append(wrong, differ...)
	if differ, err = d.checkMembers(ctx, o); err != nil {
		return err
	}
	wrong = append(wrong, differ...)
	if len(wrong) > 0 {
		return fmt.Errorf("%w:\n%s", ErrDiffers, strings.Join(wrong[:min(len(wrong), 20)], "\n"))
	}
	d.say("  check: each of the %s accounts and all members are as SQL says; it took %s\n",
		thousands(len(accounts)), short(time.Since(began)))
	return nil
}

// checkAccounts compares every person's archived events and country with the account.
func (d *demo) checkAccounts(ctx context.Context, accounts map[string]oracle.Account) ([]string, error) {
	var mu sync.Mutex
	var wrong []string
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, person := range slices.Sorted(maps.Keys(accounts)) {
		g.Go(func() error {
			got, err := d.account(ctx, person)
			if err == nil && got == accounts[person] {
				return nil
			}
			if err != nil && !hasStatus(err, http.StatusNotFound) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			wrong = append(wrong, fmt.Sprintf("%s has %+v, want %+v (%v)", person, got, accounts[person], err))
			return nil
		})
	}
	err := g.Wait()
	return wrong, err
}

// account adds up what mubatch has of a person.
func (d *demo) account(ctx context.Context, person string) (oracle.Account, error) {
	var profile struct {
		Traits struct {
			Country string `json:"country"`
		} `json:"traits"`
	}
	if err := d.do(ctx, http.MethodGet, "/api/v1/profiles/"+person, nil, &profile); err != nil {
		return oracle.Account{}, err
	}
	type archived struct {
		Name    string `json:"name"`
		Payload struct {
			Properties struct {
				Revenue jsontext.Value `json:"revenue"`
			} `json:"properties"`
		} `json:"payload"`
	}
	a := oracle.Account{Country: profile.Traits.Country}
	revenue := new(big.Rat)
	err := each(ctx, d.client, "/api/v1/profiles/"+person+"/events", func(e archived) error {
		switch e.Name {
		case "Order Completed":
			a.Orders++
		case "Order Refunded":
			a.Refunds++
		default:
			return nil
		}
		amount, ok := new(big.Rat).SetString(string(e.Payload.Properties.Revenue))
		if !ok {
			return fmt.Errorf("%s has the revenue %s", person, e.Payload.Properties.Revenue)
		}
		revenue.Add(revenue, amount)
		return nil
	})
	a.Revenue = strings.TrimSuffix(strings.TrimRight(revenue.FloatString(3), "0"), ".")
	return a, err
}

// checkMembers compares the members of each segment. Windows go on running meanwhile, and an exit is due within a second
// of their end: what differs is looked at again for a while.
func (d *demo) checkMembers(ctx context.Context, o *oracle.Oracle) ([]string, error) {
	var wrong []string
	for range 10 {
		want, err := o.Members(ctx, d.result.Shift, time.Now())
		if err != nil {
			return nil, err
		}
		wrong = nil
		for _, s := range segments {
			members, err := d.members(ctx, s.Key)
			if err != nil {
				return nil, err
			}
			got := slices.Sorted(maps.Values(members))
			if !slices.Equal(got, want[s.Key]) {
				wrong = append(wrong, fmt.Sprintf("%s has %d members, want %d; %s", s.Key, len(got), len(want[s.Key]), difference(got, want[s.Key])))
			}
		}
		if wrong == nil {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
	return wrong, nil
}

// difference names some of those who are in one list only.
func difference(got, want []string) string {
	only := func(a, b []string) []string {
		var list []string
		for _, s := range a {
			if _, found := slices.BinarySearch(b, s); !found && len(list) < 5 {
				list = append(list, s)
			}
		}
		return list
	}
	return fmt.Sprintf("not expected: %v; missing: %v", only(got, want), only(want, got))
}
