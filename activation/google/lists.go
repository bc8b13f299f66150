package google

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

// userList is google.ads.datamanager.v1.UserList, as far as it is written and read here.
type userList struct {
	ID          string    `json:"id,omitzero"`
	DisplayName string    `json:"displayName,omitzero"`
	Code        string    `json:"integrationCode,omitzero"`
	Membership  string    `json:"membershipStatus,omitzero"`
	Duration    string    `json:"membershipDuration,omitzero"`
	Ingested    ingested  `json:"ingestedUserListInfo,omitzero"`
	Size        *sizeInfo `json:"sizeInfo,omitzero"`
}

type ingested struct {
	Keys      []string  `json:"uploadKeyTypes,omitzero"`
	ContactID *keyInfo  `json:"contactIdInfo,omitzero"`
	MobileID  *mobileID `json:"mobileIdInfo,omitzero"`
	UserID    *keyInfo  `json:"userIdInfo,omitzero"`
}

type keyInfo struct {
	Source string `json:"dataSourceType,omitzero"`
	Match  int64  `json:"matchRatePercentage,omitzero"`
}

type mobileID struct {
	Source   string `json:"dataSourceType,omitzero"`
	KeySpace string `json:"keySpace,omitzero"`
	AppID    string `json:"appId,omitzero"`
}

// sizeInfo is how many people there are in each of Google's networks.
type sizeInfo struct {
	Display int64 `json:"displayNetworkMembersCount,omitzero,string"`
	Search  int64 `json:"searchNetworkMembersCount,omitzero,string"`
	YouTube int64 `json:"youtubeMembersCount,omitzero,string"`
	Gmail   int64 `json:"gmailMembersCount,omitzero,string"`
}

// Create implements [activation.Creator]. A list is found again by its integration code, whatever somebody has called it
// meanwhile.
func (p *Partner) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (audience string, o activation.Outcome) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the destination's settings cannot be read"}
	}
	list := newList(cfg, to, s)
	var found struct {
		Lists []userList `json:"userLists"`
	}
	o = p.ask(ctx, to, func(c Config) call {
		filter := url.Values{"filter": {`integration_code = "` + list.Code + `"`}}
		return call{method: http.MethodGet, path: "/v1/" + c.parent() + "/userLists?" + filter.Encode(), login: c.login()}
	}, &found)
	if o.Class != activation.OK {
		return "", o
	}
	for _, l := range found.Lists {
		if l.Code == list.Code {
			return l.ID, o
		}
	}
	body, err := json.Marshal(list)
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment's name cannot be a list's"}
	}
	var made userList
	o = p.ask(ctx, to, func(c Config) call {
		return call{method: http.MethodPost, path: "/v1/" + c.parent() + "/userLists", body: body, login: c.login()}
	}, &made)
	if o.Class != activation.OK {
		return "", o
	}
	return made.ID, o
}

// newList is the list that a segment gets. Its code and its name hold the destination's key, so that two destinations may
// share an account.
func newList(cfg Config, to activation.Target, s activation.Segment) userList {
	list := userList{
		DisplayName: fmt.Sprintf("%s (%s, seg_%d)", s.Name, to.Key, s.ID),
		Code:        fmt.Sprintf("mubatch/%s/seg_%d/%s", to.Key, s.ID, cfg.data()),
		Membership:  "OPEN",
		Duration:    strconv.FormatInt(int64(cfg.membership().Seconds()), 10) + "s",
	}
	const firstParty = "DATA_SOURCE_TYPE_FIRST_PARTY"
	switch cfg.data() {
	case mobileIDs:
		space := "ANDROID"
		if cfg.MobilePlatform == "ios" {
			space = "IOS"
		}
		list.Ingested = ingested{Keys: []string{"MOBILE_ID"}, MobileID: &mobileID{firstParty, space, cfg.MobileAppID}}
	case userIDs:
		list.Ingested = ingested{Keys: []string{"USER_ID"}, UserID: &keyInfo{Source: firstParty}}
	default:
		list.Ingested = ingested{Keys: []string{"CONTACT_ID"}, ContactID: &keyInfo{Source: firstParty}}
	}
	return list
}

// Size implements [activation.Sizer]. What Google recognised is in at least one of its networks: the largest is a lower
// bound.
func (p *Partner) Size(ctx context.Context, to activation.Target, audience string) (activation.Size, activation.Outcome) {
	var list userList
	o := p.ask(ctx, to, func(c Config) call {
		return call{method: http.MethodGet, path: "/v1/" + c.parent() + "/userLists/" + url.PathEscape(audience), login: c.login()}
	}, &list)
	size := activation.Size{Matched: -1, State: list.Membership}
	if n := list.Size; n != nil {
		size.Matched = max(n.Display, n.Search, n.YouTube, n.Gmail)
	}
	if c := list.Ingested.ContactID; c != nil && c.Match > 0 {
		size.State += fmt.Sprintf(", %d %% recognised", c.Match)
	}
	return size, o
}
